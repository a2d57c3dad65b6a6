"""Module extensions of layers, and of modules that only backpropagate curvature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from backpack.core.derivatives.basederivatives import (
    BaseDerivatives,
    BaseParameterDerivatives,
)
from backpack.custom_module.scale_module import ScaleModule
from backpack.extensions.mat_to_mat_jac_base import MatToJacMat
from backpack.extensions.module_extension import ModuleExtension
from backpack.extensions.secondorder.diag_hessian.diag_h_base import DiagHBaseModule
from backpack.utils.errors import batch_norm_raise_error_if_train
from backpack.utils.module_classification import is_nll
from backpack.utils.subsampling import subsample
from torch import Tensor, nn
from torch.nn import Module

from tn_extensions.backpack.derivatives import (
    BatchNormDerivatives,
    LinearModuleDerivatives,
    MaxPoolDerivatives,
)
from tn_extensions.backpack.layer import Layer

CONVOLUTIONS: tuple[type[Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

BATCH_NORMS: tuple[type[Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)

AVERAGE_POOLS: tuple[type[Module], ...] = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)

MAX_POOLS: tuple[type[Module], ...] = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)


def num_axes(module: Module) -> int:
    """Return the smallest number of axes that a batch of a module's inputs has."""
    for kinds in (CONVOLUTIONS, MAX_POOLS):
        for i, kind in enumerate(kinds):
            if isinstance(module, kind):
                return 3 + i % 3  # samples, channels, one to three dimensions
    return 2 if isinstance(module, nn.Linear) or is_nll(module) else 0


def passive(
    base: Callable[[BaseDerivatives], ModuleExtension],
) -> dict[type[Module], ModuleExtension]:
    """Create module extensions of pooling and similar modules, for all their options.

    Args:
        base: BackPACK's class of module extensions that only backpropagate.

    Returns:
        Module extensions by the module's type.
    """
    linear = (*AVERAGE_POOLS, nn.Identity, ScaleModule)
    result: dict[type[Module], ModuleExtension] = {}
    result |= dict.fromkeys(linear, base(LinearModuleDerivatives()))
    result |= dict.fromkeys(MAX_POOLS, base(MaxPoolDerivatives()))
    return result


class _OfParameters(ModuleExtension):
    """Module extension with quantities of parameters, which the extension defines.

    Name it as a base class before BackPACK's class of module extensions that
    backpropagate what the extension needs.

    Args:
        derivatives: Derivatives of the module.
        params: Names of its parameters.
    """

    def __init__(self, derivatives: BaseDerivatives, params: Sequence[str]) -> None:
        self.derivatives = derivatives
        for name in params:
            setattr(self, name, partial(self._quantity, name))
        super().__init__(derivatives, params=list(params))

    def quantity(self, name: str, ext: Any, module: Any, vectors: Tensor) -> Tensor:
        """Compute a parameter's quantity of vectors ``[(V,) N, *output.shape[1:]]``."""
        raise NotImplementedError

    def _quantity(
        self, name: str, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any
    ) -> Tensor:
        quantity = partial(self.quantity, name, ext, module)
        if not ext.expects_backpropagation_quantities():
            return quantity(subsample(g_out[0], subsampling=ext.get_subsampling()))
        if not isinstance(backproped, dict):
            return quantity(backproped)
        # the Hessian is a signed sum of squares of square roots
        first, *others = zip(backproped["matrices"], backproped["signs"], strict=True)
        total = first[1] * quantity(first[0])
        for matrix, sign in others:
            total += sign * quantity(matrix)
        return total


class _Layers(_OfParameters):
    """Convolutions and ``Linear``: quantities of :mod:`tn_extensions.functional`.

    Args:
        derivatives: Derivatives of the layer.
    """

    def __init__(self, derivatives: BaseDerivatives) -> None:
        super().__init__(derivatives, ("weight", "bias"))

    def __call__(self, extension: Any, module: Any, g_inp: Any, g_out: Any) -> None:
        """Save the quantities, then backpropagate."""
        forget_output_size(module)
        super().__call__(extension, module, g_inp, g_out)

    def quantity(self, name: str, ext: Any, module: Any, vectors: Tensor) -> Tensor:
        """Compute the extension's quantity of a parameter."""
        layer = Layer(module, ext.get_subsampling())
        result: Tensor
        if name == "bias":
            result = ext.of_gradients(layer.bias_gradients(vectors), module.bias)
        else:
            others = [
                asked
                for other in ext.companions()
                if isinstance(other.extension_of(module), LayerModule)
                for asked in other.asks
            ]
            result = ext.of_kernel(layer, *layer.evaluate(ext.asks, vectors, others))
        return result


class LayerModule(_Layers, MatToJacMat):
    """A layer, for extensions of first order or of the GGN's square root."""


class HessianLayer(_Layers, DiagHBaseModule):
    """A layer, for extensions of the Hessian's diagonal."""


class _Gradients(_OfParameters):
    """Modules whose gradients are formed before the extension processes them.

    For modules with few parameters, or without a faster algorithm.

    Args:
        derivatives: Derivatives of the module.
        params: Names of its parameters.
    """

    derivatives: BaseParameterDerivatives

    def quantity(self, name: str, ext: Any, module: Any, vectors: Tensor) -> Tensor:
        """Compute the extension's quantity from gradients."""
        gradients = self.derivatives.param_mjp(
            name,
            module,
            None,
            None,
            vectors,
            sum_batch=False,
            subsampling=ext.get_subsampling(),
        )
        result: Tensor = ext.of_gradients(gradients, getattr(module, name))
        return result


class GradientsModule(_Gradients, MatToJacMat):
    """A module, for extensions of first order or of the GGN's square root."""


class _BatchNorms(_Gradients):
    """BatchNorm, which couples samples in train mode."""

    def __init__(self) -> None:
        super().__init__(BatchNormDerivatives(), ("weight", "bias"))

    def check_hyperparameters_module_extension(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any
    ) -> None:
        """Raise an error, or warn, if samples are coupled."""
        batch_norm_raise_error_if_train(module, raise_error=ext.refuses_coupling)


class BatchNormModule(_BatchNorms, MatToJacMat):
    """BatchNorm, for extensions of first order or of the GGN's square root."""


class HessianBatchNorm(_BatchNorms, DiagHBaseModule):
    """BatchNorm, for extensions of the Hessian's diagonal."""


def forget_output_size(module: Any) -> None:
    """Delete a positional ``output_size``, which BackPACK saves as a second input."""
    if not isinstance(getattr(module, "input1", None), Tensor):
        vars(module).pop("input1", None)
