"""What all of our extensions of BackPACK share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from backpack.context import CTX
from backpack.extensions.backprop_extension import FAIL_ERROR, BackpropExtension
from backpack.extensions.module_extension import ModuleExtension
from backpack.extensions.secondorder.hbp.hbp_options import LossHessianStrategy
from backpack.utils.module_classification import is_loss
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.parametrize import is_parametrized

from tn_extensions.backpack.adapted import adapted
from tn_extensions.backpack.columns import Columns
from tn_extensions.backpack.modules import CONVOLUTIONS
from tn_extensions.backpack.saved import SavedCopies
from tn_extensions.backpack.sharing import SHARED
from tn_extensions.errors import describe


class Extension(BackpropExtension):
    """An extension whose module extensions of convolutions are ours.

    To be inherited from after one of BackPACK's extensions, whose constructor passes on
    the module extensions that it knows.
    """

    backpropagates_columns = False
    """Whether it is a square root of a curvature matrix that is backpropagated."""
    additive = False
    """Whether what it saves is a sum over the columns of that square root."""
    in_parameter_dtype = False
    """Whether what it saves has the parameter's dtype, and not float32 or wider."""
    refuses_coupling = True
    """Whether BatchNorm in train mode is an error; else, as in BackPACK, a warning."""
    loss_hessian_strategy: str
    """Of extensions that backpropagate a square root; BackPACK sets it."""

    def __init__(
        self,
        savefield: str,
        module_exts: dict[type[Module], ModuleExtension],
        fail_mode: str = FAIL_ERROR,
        subsampling: list[int] | None = None,
    ) -> None:
        module_exts = module_exts | self.module_extensions()
        self._known = {kind: adapted(known) for kind, known in module_exts.items()}
        super().__init__(savefield, self._known, fail_mode, subsampling)
        self.saved_quantities = SavedCopies()
        self._visited: WeakSet[Module] = WeakSet()

    def module_extensions(self) -> dict[type[Module], ModuleExtension]:
        """Module extensions that differ from BackPACK's, or that it lacks."""
        raise NotImplementedError

    def set_module_extension(
        self, module: type[Module], extension: ModuleExtension, overwrite: bool = False
    ) -> None:
        """Add a module extension of the user's own."""
        super().set_module_extension(
            module, adapted(extension, is_users=True), overwrite
        )

    def __call__(
        self, module: Module, g_inp: tuple[Tensor, ...], g_out: tuple[Tensor, ...]
    ) -> None:
        """Run at a module; subclasses of convolutions that compute the same count.

        Args:
            module: Module that ran a forward pass.
            g_inp: Gradients with respect to its inputs.
            g_out: Gradients with respect to its output.

        Raises:
            AttributeError: If the module holds no forward pass.
            ValueError: If the loss is not reduced, or ``subsampling`` does not fit.
            NotImplementedError: If the module is unknown. In any case, all of our
                extensions drop what they saved in this backward pass.
        """
        active = [e for e in CTX.get_active_exts() if isinstance(e, Extension)]
        has_parameters = any(True for _ in module.parameters(recurse=False))
        if is_loss(module) or (has_parameters and module in self._visited):
            self.begin()
        self._visited.add(module)
        if not active or active[0] is self:
            SHARED.clear()  # in case that another's extension failed before
        try:
            self._check(module)
            self._learn(module)
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
        """Sum what arrives at a branching point."""
        if isinstance(existing, Columns):
            return existing + other
        return super().accumulate_backpropagated_quantities(existing, other)

    def begin(self) -> None:
        """A new backward pass begins."""
        self._visited.clear()

    def start(self, module: Any, square_root: Callable[[], Tensor]) -> Columns:
        """The loss Hessian's square root; an exact one is the same for all extensions.

        Args:
            module: The loss.
            square_root: Computes ``[V, N, ...]``.
        """
        subsampling = self.get_subsampling()
        if self.loss_hessian_strategy != LossHessianStrategy.EXACT:
            return Columns([square_root()])  # draws samples of its own, as stock does
        samples = None if subsampling is None else tuple(subsampling)
        return SHARED.once((samples, "loss"), [], lambda: Columns([square_root()]))

    def _check(self, module: Any) -> None:
        name, kind = type(self).__name__, type(module).__name__
        if not hasattr(module, "output"):
            raise AttributeError(
                describe(
                    name,
                    kind,
                    "hold its input and output from a forward pass",
                    "neither",
                    "Call forward anew, not in backpack.disable() or torch.no_grad();"
                    " for a second backward pass, pass retain_graph=True to backpack()",
                )
            )
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

    def _learn(self, module: Module) -> None:
        """Treat a subclass of a convolution like its base, if it computes the same."""
        kind: Any = type(module)
        base: Any
        for base in CONVOLUTIONS:
            if (
                kind not in self._known
                and isinstance(module, base)
                and kind.forward is base.forward
                and kind._conv_forward is base._conv_forward
                # its weight is a result, which cannot carry a savefield
                and not is_parametrized(module)
            ):
                self._known[kind] = self._known[base]

    def _drop(self) -> None:
        """Forget a backward pass that failed, so that no savefield is left of it."""
        for module in self._visited:
            for parameter in module.parameters(recurse=False):
                if hasattr(parameter, self.savefield):
                    delattr(parameter, self.savefield)
        self._visited.clear()
        self.saved_quantities = SavedCopies()
