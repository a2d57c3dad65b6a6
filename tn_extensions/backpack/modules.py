"""Module extensions: of convolutions, and of modules that only pass curvature on."""

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
    """Count the axes that a batch of a module's inputs has at least."""
    for kinds in (CONVOLUTIONS, MAX_POOLS):
        for i, kind in enumerate(kinds):
            if isinstance(module, kind):
                return 3 + i % 3  # samples, channels, one to three dimensions
    return 2 if isinstance(module, nn.Linear) or is_nll(module) else 0


def passive(
    base: Callable[[BaseDerivatives], ModuleExtension],
) -> dict[type[Module], ModuleExtension]:
    """Pooling and the like, right for all hyper-parameters.

    Args:
        base: BackPACK's class of module extensions that backpropagate.

    Returns:
        Module extensions by the module's type.
    """
    linear = (*AVERAGE_POOLS, nn.Identity, ScaleModule)
    result: dict[type[Module], ModuleExtension] = {}
    result |= dict.fromkeys(linear, base(LinearModuleDerivatives()))
    result |= dict.fromkeys(MAX_POOLS, base(MaxPoolDerivatives()))
    return result


class _OfParameters(ModuleExtension):
    """What an extension wants of a module's parameters: it says so itself.

    To be inherited from before BackPACK's class of module extensions that backpropagate
    what the extension needs.

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
        """A parameter's quantity, from vectors ``[(V,) N, *output.shape[1:]]``."""
        raise NotImplementedError

    def _quantity(
        self, name: str, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any
    ) -> Tensor:
        quantity = partial(self.quantity, name, ext, module)
        if not ext.expects_backpropagation_quantities():
            return quantity(subsample(g_out[0], subsampling=ext.get_subsampling()))
        if not isinstance(backproped, dict):
            return quantity(backproped)
        # the Hessian is a sum of square roots' squares with signs
        first, *others = zip(backproped["matrices"], backproped["signs"], strict=True)
        total = first[1] * quantity(first[0])
        for matrix, sign in others:
            total += sign * quantity(matrix)
        return total


class _Layers(_OfParameters):
    """Convolutions and ``Linear``: quantities of the functional interface.

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
        """The extension's quantity of the layer."""
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
    """A layer of extensions of first order, or of the GGN's square root."""


class HessianLayer(_Layers, DiagHBaseModule):
    """A layer of extensions of the Hessian's diagonal."""


class _Gradients(_OfParameters):
    """Modules whose gradients are formed, with the extension's function of them.

    For modules with few parameters, or for which there is nothing faster.

    Args:
        derivatives: Derivatives of the module.
        params: Names of its parameters.
    """

    derivatives: BaseParameterDerivatives

    def quantity(self, name: str, ext: Any, module: Any, vectors: Tensor) -> Tensor:
        """The extension's quantity of gradients."""
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
    """A module of extensions of first order, or of the GGN's square root."""


class _BatchNorms(_Gradients):
    """BatchNorm, about which BackPACK complains where it couples samples."""

    def __init__(self) -> None:
        super().__init__(BatchNormDerivatives(), ("weight", "bias"))

    def check_hyperparameters_module_extension(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any
    ) -> None:
        """Refuse, or warn."""
        batch_norm_raise_error_if_train(module, raise_error=ext.refuses_coupling)


class BatchNormModule(_BatchNorms, MatToJacMat):
    """BatchNorm of extensions of first order, or of the GGN's square root."""


class HessianBatchNorm(_BatchNorms, DiagHBaseModule):
    """BatchNorm of extensions of the Hessian's diagonal."""


def forget_output_size(module: Any) -> None:
    """BackPACK takes an ``output_size`` given by position for a second input."""
    if not isinstance(getattr(module, "input1", None), Tensor):
        vars(module).pop("input1", None)
