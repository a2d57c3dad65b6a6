"""Module extensions: of convolutions, and of modules that only pass curvature on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from backpack.utils.subsampling import subsample
from torch import Tensor, nn
from torch.nn import Module

from tn_extensions.backpack.derivatives import (
    ConvDerivatives,
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


def passive(
    base: Callable[[BaseDerivatives], ModuleExtension],
) -> dict[type[Module], ModuleExtension]:
    """Pooling and the like, right for all hyper-parameters.

    Args:
        base: BackPACK's class of module extensions that backpropagate.

    Returns:
        Module extensions by the module's type.
    """
    linear = (
        nn.AvgPool1d,
        nn.AvgPool2d,
        nn.AvgPool3d,
        nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d,
        nn.AdaptiveAvgPool3d,
        nn.Identity,
        ScaleModule,
    )
    maximum = (
        nn.MaxPool1d,
        nn.MaxPool2d,
        nn.MaxPool3d,
        nn.AdaptiveMaxPool1d,
        nn.AdaptiveMaxPool2d,
        nn.AdaptiveMaxPool3d,
    )
    result: dict[type[Module], ModuleExtension] = {}
    result |= dict.fromkeys(linear, base(LinearModuleDerivatives()))
    result |= dict.fromkeys(maximum, base(MaxPoolDerivatives()))
    return result


class LayerModule(MatToJacMat):
    """A layer with a kernel and a bias: the extension says what it wants of them.

    Args:
        derivatives: Derivatives of the layer.
    """

    def __init__(self, derivatives: BaseDerivatives) -> None:
        super().__init__(derivatives, params=["weight", "bias"])

    def __call__(self, extension: Any, module: Any, g_inp: Any, g_out: Any) -> None:
        """Save the quantities, then backpropagate."""
        forget_output_size(module)
        super().__call__(extension, module, g_inp, g_out)

    def weight(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any
    ) -> Tensor:
        """Quantity of the kernel."""
        return self._quantity("weight", ext, module, g_out, backproped)

    def bias(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any
    ) -> Tensor:
        """Quantity of the bias."""
        return self._quantity("bias", ext, module, g_out, backproped)

    def _quantity(
        self, parameter: str, ext: Any, module: Any, g_out: Any, backproped: Any
    ) -> Tensor:
        vectors = vectors_of(ext, g_out, backproped)
        layer = Layer(module, ext.get_subsampling())
        result: Tensor = ext.quantity(layer, parameter, vectors)
        return result


class ConvModule(LayerModule):
    """A convolution, transposed or not, of any dimension."""

    def __init__(self) -> None:
        super().__init__(ConvDerivatives())


class HessianConv(DiagHBaseModule):
    """The Hessian's diagonal: square roots with signs are backpropagated."""

    def __init__(self) -> None:
        super().__init__(ConvDerivatives(), params=["weight", "bias"])

    def __call__(self, extension: Any, module: Any, g_inp: Any, g_out: Any) -> None:
        """Save the quantities, then backpropagate."""
        forget_output_size(module)
        super().__call__(extension, module, g_inp, g_out)

    def weight(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any
    ) -> Tensor:
        """Diagonal of the kernel's Hessian."""
        return self._diagonal("weight", ext, module, backproped)

    def bias(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any
    ) -> Tensor:
        """Diagonal of the bias' Hessian."""
        return self._diagonal("bias", ext, module, backproped)

    @staticmethod
    def _diagonal(parameter: str, ext: Any, module: Any, backproped: Any) -> Tensor:
        layer = Layer(module)
        total: Tensor | None = None
        pairs = zip(backproped["matrices"], backproped["signs"], strict=True)
        for matrix, sign in pairs:
            diagonal = sign * ext.quantity(layer, parameter, matrix)
            total = diagonal if total is None else total.add_(diagonal)
        assert total is not None
        return total


class GradientsModule(MatToJacMat):
    """A module whose gradients are formed, with the extension's function of them.

    For modules with few parameters, or for which there is nothing faster.

    Args:
        derivatives: Derivatives of the module.
        params: Names of its parameters.
        is_batch_norm: Whether it may couple samples, about which BackPACK complains.
    """

    def __init__(
        self,
        derivatives: BaseParameterDerivatives,
        params: Sequence[str],
        is_batch_norm: bool = False,
    ) -> None:
        for name in params:
            setattr(self, name, self._make(name))
        super().__init__(derivatives, params=list(params))
        self._is_batch_norm = is_batch_norm

    def check_hyperparameters_module_extension(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any
    ) -> None:
        """Refuse, or for first-order extensions warn, where samples are coupled."""
        if self._is_batch_norm:
            second_order = ext.expects_backpropagation_quantities()
            batch_norm_raise_error_if_train(module, raise_error=second_order)

    def _make(self, name: str) -> Callable[..., Tensor]:
        def of_parameter(
            ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any
        ) -> Tensor:
            gradients = self.derivatives.param_mjp(
                name,
                module,
                g_inp,
                g_out,
                vectors_of(ext, g_out, backproped),
                sum_batch=False,
                subsampling=ext.get_subsampling(),
            )
            result: Tensor = ext.of_gradients(gradients, getattr(module, name))
            return result

        return of_parameter


def vectors_of(ext: Any, g_out: Any, backproped: Any) -> Tensor:
    """What an extension multiplies with Jacobians: a square root, or gradients."""
    vectors: Tensor = backproped
    if not ext.expects_backpropagation_quantities():
        vectors = subsample(g_out[0], subsampling=ext.get_subsampling())
    return vectors


def forget_output_size(module: Any) -> None:
    """BackPACK takes an ``output_size`` given by position for a second input."""
    if not isinstance(getattr(module, "input1", None), Tensor):
        vars(module).pop("input1", None)
