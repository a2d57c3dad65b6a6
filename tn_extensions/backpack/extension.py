"""The base class of our BackPACK extensions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import index
from typing import Any, ClassVar
from warnings import warn
from weakref import WeakKeyDictionary

import torch
from backpack.context import CTX
from backpack.extensions.backprop_extension import (
    FAIL_ERROR,
    FAIL_WARN,
    BackpropExtension,
)
from backpack.extensions.module_extension import ModuleExtension
from backpack.extensions.secondorder.hbp.hbp_options import LossHessianStrategy
from backpack.utils.module_classification import is_loss
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.parametrize import ParametrizationList

from tn_extensions.backpack.adapted import adapted
from tn_extensions.backpack.columns import Columns
from tn_extensions.backpack.layer import Asked, Layer
from tn_extensions.backpack.modules import num_axes
from tn_extensions.backpack.saved import SavedCopies
from tn_extensions.backpack.sharing import SHARED
from tn_extensions.errors import describe
from tn_extensions.layers.module import SUPPORTED, reason_against


class Extension(BackpropExtension):
    """An extension that replaces BackPACK's module extensions of convolutions.

    Name it as a base class after one of BackPACK's extensions, whose constructor passes
    BackPACK's module extensions on.
    """

    backpropagates_columns = False
    """True if the extension backpropagates a square root of a curvature matrix."""
    additive = False
    """True if the saved quantity is a sum over the columns of this square root."""
    in_parameter_dtype = False
    """True if the saved quantity has the parameter's dtype; else float32 or wider."""
    refuses_coupling = True
    """True if BatchNorm in train mode is an error; else BackPACK warns."""
    asks: ClassVar[Asked] = ()
    """Quantities of a layer's kernel that the extension needs."""
    loss_hessian_strategy: str
    """Set by BackPACK for extensions that backpropagate a square root."""

    def __init__(
        self,
        savefield: str,
        module_exts: dict[type[Module], ModuleExtension],
        fail_mode: str = FAIL_ERROR,
        subsampling: Iterable[int] | None = None,
    ) -> None:
        subsampling = self._check_arguments(subsampling)
        module_exts = module_exts | self.module_extensions()
        self._known = {kind: adapted(known) for kind, known in module_exts.items()}
        super().__init__(savefield, self._known, fail_mode, subsampling)
        self.saved_quantities = SavedCopies()
        # the id of the autograd pass that visited a module last
        self._visited: WeakKeyDictionary[Module, int] = WeakKeyDictionary()
        self._users: set[type[Module]] = set()

    def module_extensions(self) -> dict[type[Module], ModuleExtension]:
        """Return module extensions that BackPACK lacks, or that differ from its own."""
        raise NotImplementedError

    def of_kernel(self, layer: Layer, *found: Tensor) -> Tensor:
        """Compute the saved quantity of a kernel from the quantities in ``asks``."""
        (result,) = found
        return result

    def extension_of(self, module: Module) -> ModuleExtension | None:
        """Return the module extension of a module, if there is one."""
        return self._known.get(type(module))

    def companions(self) -> list[Extension]:
        """List other extensions of this backward pass that receive the same vectors."""
        active = [e for e in CTX.get_active_exts() if isinstance(e, Extension)]
        own = self._source()
        return [e for e in active if e is not self and own and e._source() == own]

    def _source(self) -> tuple[Any, ...] | None:
        """Name the vectors that the extension receives; None if no other can."""
        samples, name = self.get_subsampling(), "gradients"
        if self.expects_backpropagation_quantities():
            strategy = getattr(self, "loss_hessian_strategy", None)
            if not self.backpropagates_columns or strategy != LossHessianStrategy.EXACT:
                return None
            name = "square root"
        return name, None if samples is None else tuple(samples)

    def set_module_extension(
        self, module: type[Module], extension: ModuleExtension, overwrite: bool = False
    ) -> None:
        """Add a user's module extension."""
        self._users.add(module)
        super().set_module_extension(
            module, adapted(extension, is_users=True), overwrite
        )

    def __call__(
        self, module: Module, g_inp: tuple[Tensor, ...], g_out: tuple[Tensor, ...]
    ) -> None:
        """Run at a module. Subclasses that compute what their base does are supported.

        Args:
            module: Module that ran a forward pass.
            g_inp: Gradients with respect to its inputs.
            g_out: Gradients with respect to its output.

        Raises:
            AttributeError: If the module ran no forward pass.
            TypeError: If its output is complex.
            ValueError: If the module was used twice, its input has no axis of samples,
                the loss is not reduced, or ``subsampling`` does not fit.
            NotImplementedError: If the module is unknown, or its kernel is not a
                parameter. With every error, all of our extensions drop what they saved
                in this backward pass.
        """
        active = [e for e in CTX.get_active_exts() if isinstance(e, Extension)]
        current, last = torch._C._current_graph_task_id(), self._visited.get(module)
        is_again = last == current != -1  # -1: outside of a backward pass
        starts = is_loss(module) and current not in self._visited.values()
        if starts or not self._visited or (last is not None and not is_again):
            self.begin()
        self._visited[module] = current
        if not active or active[0] is self:
            SHARED.clear()  # another extension may have failed before
        try:
            if not self._refuses(module):
                self._check(module, g_out, is_again)
                SHARED.active = len(active) > 1
                super().__call__(module, g_inp, g_out)
        except BaseException:
            SHARED.clear()
            for extension in {self, *active}:
                extension._drop()
            raise
        if not active or active[-1] is self:
            SHARED.clear()

    def accumulate_backpropagated_quantities(self, existing: Any, other: Any) -> Any:
        """Sum the quantities that arrive at a branching point."""
        return existing + other

    def begin(self) -> None:
        """Begin a new backward pass."""
        self._visited.clear()

    def start(self, module: Any, square_root: Callable[[], Tensor]) -> Columns:
        """Compute the square root of the loss's Hessian; extensions share exact ones.

        Args:
            module: The loss.
            square_root: Function that computes the square root, ``[V, N, ...]``.

        Returns:
            The square root.
        """
        subsampling = self.get_subsampling()
        if self.loss_hessian_strategy != LossHessianStrategy.EXACT:
            return Columns([square_root()])  # each draws its own, as in BackPACK
        samples = None if subsampling is None else tuple(subsampling)
        return SHARED.once((samples, "loss"), [], lambda: Columns([square_root()]))

    def _check_arguments(self, subsampling: Any) -> list[int] | None:
        """Check arguments; return the samples in the form that BackPACK takes."""
        name = type(self).__name__
        samples = getattr(self, "_mc_samples", 1)  # set already by BackPACK's class
        if not _is_index(samples) or samples < 1:
            kind = ValueError if _is_index(samples) else TypeError
            rule = "be a positive integer"
            raise kind(describe(name, "mc_samples", rule, repr(samples)))
        if subsampling is None:
            return None
        is_iterable = isinstance(subsampling, Iterable)
        chosen: list[Any] = list(subsampling) if is_iterable else [None]
        if not all(map(_is_index, chosen)):
            rule = "be a list of integers"
            raise TypeError(describe(name, "subsampling", rule, repr(subsampling)))
        if self.expects_backpropagation_quantities() and not chosen:
            rule = "have at least one sample"
            raise ValueError(describe(name, "subsampling", rule, "none"))
        return list(map(index, chosen))

    def _refuses(self, module: Any) -> bool:
        """Treat a layer's subclass like its base, or refuse it.

        Like BackPACK for unknown modules, raise an error, warn, or do nothing.
        """
        kind = type(module)
        if isinstance(module, ParametrizationList) and self._fail_mode == FAIL_ERROR:
            raise NotImplementedError(
                describe(
                    type(self).__name__,
                    "model",
                    "multiply by its parameters",
                    f"one that is computed by {', '.join(map(_named, module))},"
                    " which does not have an extension",
                    "Remove it with parametrize.remove_parametrizations()",
                )
            )
        if not isinstance(module, SUPPORTED) or kind in self._users:
            return False
        reason = reason_against(module)
        base = next(base for base in SUPPORTED if isinstance(module, base))
        if reason is None:
            if base in self._known:
                self._known.setdefault(kind, self._known[base])
            return False
        message = describe(
            type(self).__name__,
            kind.__name__,
            f"multiply by its parameters as torch.nn.{base.__name__} does",
            f"{_named(module)}, which {reason} and does not have an extension",
            "Make the kernel a parameter (remove_weight_norm, prune.remove, ...), or"
            " add a module extension with set_module_extension()",
        )
        if self._fail_mode == FAIL_ERROR:
            raise NotImplementedError(message)
        if self._fail_mode == FAIL_WARN:
            warn(message, UserWarning, stacklevel=3)
        return True

    def _check(self, module: Any, g_out: Any, is_again: bool) -> None:
        """Refuse a module whose quantities would fail or be wrong."""
        name, kind = type(self).__name__, type(module).__name__
        is_known = type(module) in self._known
        if is_again and not is_known:  # no extension runs there
            return
        if is_again or is_known and _differ(getattr(module, "output", None), g_out[0]):
            raise ValueError(
                describe(
                    name,
                    kind,
                    "be used once before each backward pass",
                    f"{_named(module)} used again",
                    "BackPACK keeps the input of one use only: create a module for"
                    " each use, and run other forward passes in torch.no_grad()",
                )
            )
        if not hasattr(module, "output"):
            raise AttributeError(
                describe(
                    name,
                    kind,
                    "have its input and output from a forward pass",
                    "neither",
                    "Repeat the forward pass outside of backpack.disable() and"
                    " torch.no_grad(); for a second backward pass, pass"
                    " retain_graph=True to backpack()",
                )
            )
        if is_known:
            self._check_data(module)

    def _check_data(self, module: Any) -> None:
        """Refuse a batch that the extension does not support."""
        name, kind = type(self).__name__, type(module).__name__
        if module.output.is_complex():
            value = f"{module.output.dtype} from {_named(module)}"
            raise TypeError(describe(name, f"{kind}.output", "be real", value))
        least, dims = num_axes(module), module.input0.dim()
        if dims < least:
            remedy = "Pass a batch whose first axis is the samples"
            if is_loss(module):
                remedy = "Do not squeeze the output: pass [N, C] to the loss"
            value = f"{dims} (shape {list(module.input0.shape)})"
            rule = f"be at least {least}"
            raise ValueError(describe(name, f"{kind}.input.dim()", rule, value, remedy))
        second_order = self.expects_backpropagation_quantities()
        if second_order and is_loss(module) and module.reduction == "none":
            rule = "be 'mean' or 'sum'"
            raise ValueError(describe(name, f"{kind}.reduction", rule, "'none'"))
        subsampling = self.get_subsampling()
        if subsampling is not None:
            size = len(module.input0)
            if any(not -size <= sample < size for sample in subsampling):
                rule = f"index a batch of {size} samples ({kind})"
                raise ValueError(describe(name, "subsampling", rule, subsampling))

    def _drop(self) -> None:
        """Delete all savefields of a backward pass that failed."""
        for module in self._visited:
            for parameter in module.parameters(recurse=False):
                if hasattr(parameter, self.savefield):
                    delattr(parameter, self.savefield)
        self._visited.clear()
        self.saved_quantities = SavedCopies()


def _is_index(value: Any) -> bool:
    """Tell whether a value is an integer, not a boolean."""
    is_boolean = isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool
    try:
        index(value)
    except TypeError:
        return False
    return not is_boolean


def _differ(output: Tensor | None, gradient: Tensor | None) -> bool:
    """Tell whether a gradient belongs to another forward pass than the saved output."""
    if output is None or gradient is None:
        return False
    return output.shape != gradient.shape


def _named(module: Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"
