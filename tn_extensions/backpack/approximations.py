"""Approximations of the Hessian's diagonal that backpropagate only a diagonal.

A module with output ``y`` and input ``x`` turns the diagonal ``h_y`` into ``h_x =
(J^2)^T h_y + sum_y g_y d^2 y / dx^2``. The entries of the Jacobian are squared, and
off-diagonal entries of the output's Hessian are ignored. The pass costs about as much
as the backward pass of the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from backpack.core.derivatives.basederivatives import BaseDerivatives
from backpack.core.derivatives.bcewithlogitsloss import BCELossWithLogitsDerivatives
from backpack.core.derivatives.crossentropyloss import CrossEntropyLossDerivatives
from backpack.core.derivatives.dropout import DropoutDerivatives
from backpack.core.derivatives.elu import ELUDerivatives
from backpack.core.derivatives.flatten import FlattenDerivatives
from backpack.core.derivatives.leakyrelu import LeakyReLUDerivatives
from backpack.core.derivatives.logsigmoid import LogSigmoidDerivatives
from backpack.core.derivatives.mseloss import MSELossDerivatives
from backpack.core.derivatives.pad import PadDerivatives
from backpack.core.derivatives.relu import ReLUDerivatives
from backpack.core.derivatives.selu import SELUDerivatives
from backpack.core.derivatives.sigmoid import SigmoidDerivatives
from backpack.core.derivatives.slicing import SlicingDerivatives
from backpack.core.derivatives.tanh import TanhDerivatives
from backpack.core.derivatives.zeropad2d import ZeroPad2dDerivatives
from backpack.custom_module.branching import SumModule
from backpack.custom_module.pad import Pad
from backpack.custom_module.scale_module import ScaleModule
from backpack.custom_module.slicing import Slicing
from backpack.extensions.module_extension import ModuleExtension
from backpack.extensions.secondorder.base import SecondOrderBackpropExtension
from backpack.utils.errors import batch_norm_raise_error_if_train
from torch import Tensor, nn
from torch.nn import Module

from tn_extensions.backpack.derivatives import (
    BatchNormDerivatives,
    ConvDerivatives,
    DenseDerivatives,
    LinearModuleDerivatives,
    MaxPoolDerivatives,
    SumDerivatives,
)
from tn_extensions.backpack.extension import Extension
from tn_extensions.backpack.layer import Layer
from tn_extensions.backpack.modules import (
    AVERAGE_POOLS,
    BATCH_NORMS,
    CONVOLUTIONS,
    MAX_POOLS,
    forget_output_size,
)


class _Approximation(Extension, SecondOrderBackpropExtension):
    """Backpropagate a diagonal instead of the Hessian; the base of both extensions."""

    in_parameter_dtype = True
    field: str

    def __init__(self) -> None:
        super().__init__(self.field, {})

    def module_extensions(self) -> dict[type[Module], ModuleExtension]:
        """Return module extensions of all modules that backpropagate a diagonal."""
        diagonal: dict[type[Module], BaseDerivatives] = {
            nn.ReLU: ReLUDerivatives(),
            nn.LeakyReLU: LeakyReLUDerivatives(),
            nn.Sigmoid: SigmoidDerivatives(),
            nn.LogSigmoid: LogSigmoidDerivatives(),
            nn.Tanh: TanhDerivatives(),
            nn.ELU: ELUDerivatives(),
            nn.SELU: SELUDerivatives(),
            nn.Dropout: DropoutDerivatives(),
            nn.Identity: LinearModuleDerivatives(),
            ScaleModule: LinearModuleDerivatives(),
        }
        copies: dict[type[Module], BaseDerivatives] = {
            nn.Flatten: FlattenDerivatives(),
            nn.ZeroPad2d: ZeroPad2dDerivatives(),
            Pad: PadDerivatives(),
            Slicing: SlicingDerivatives(),
            SumModule: SumDerivatives(),
            **dict.fromkeys(MAX_POOLS, MaxPoolDerivatives()),
        }
        losses = (
            (nn.MSELoss, MSELossDerivatives()),
            (nn.CrossEntropyLoss, CrossEntropyLossDerivatives()),
            (nn.BCEWithLogitsLoss, BCELossWithLogitsDerivatives()),
        )
        averages = dict.fromkeys(AVERAGE_POOLS, _Average(LinearModuleDerivatives()))
        return (
            {kind: _Diagonal(own) for kind, own in diagonal.items()}
            | {kind: _Copies(own) for kind, own in copies.items()}
            | {kind: _Loss(own) for kind, own in losses}
            | averages
            | {nn.Linear: _Layer(DenseDerivatives())}
            | dict.fromkeys(CONVOLUTIONS, _Layer(ConvDerivatives()))
            | dict.fromkeys(BATCH_NORMS, _BatchNorm(BatchNormDerivatives()))
        )

    def of_cross_entropy(self, module: Any, probabilities: Tensor) -> Tensor:
        """Compute the Hessian diagonal of a cross entropy, summed over samples."""
        return probabilities - probabilities.square()


class DiagHessianHesScale(_Approximation):
    """HesScale: approximate the Hessian's diagonal, in ``parameter.diag_h_hesscale``.

    Like :class:`DiagHessianBL89`, but exact at the model's output: with softmax
    probabilities ``p``, the diagonal of a cross entropy's Hessian is ``p - p^2``.
    Hence, it is exact for the parameters of the last layer if this is a ``Linear`` on
    vectors. Shaped like the parameter, of its dtype.

    Reference: Elsayed and Mahmood, "HesScale: Scalable Computation of Hessian
    Diagonals", 2022, arXiv:2210.11639.
    """

    field = "diag_h_hesscale"


class DiagHessianBL89(_Approximation):
    """Approximate the Hessian's diagonal, in ``parameter.diag_h_bl89``.

    A module with output ``y`` and input ``x`` turns the diagonal ``h_y`` into ``h_x =
    (J^2)^T h_y + sum_y g_y d^2 y / dx^2``, with the gradient ``g`` and the elementwise
    square of the Jacobian ``J``. The diagonals for its parameters are computed in the
    same way. Shaped like the parameter, of its dtype. The softmax of a cross entropy is
    treated like an elementwise function, too: with probabilities ``p`` and targets
    ``t`` (one-hot or probabilities), the diagonal is ``t (p - p^2)``.

    Reference: Becker and Le Cun, "Improving the convergence of back-propagation
    learning with second order methods", 1989.
    """

    field = "diag_h_bl89"

    def of_cross_entropy(self, module: Any, probabilities: Tensor) -> Tensor:
        """Compute the diagonal for the outputs of the target classes."""
        targets = module.input1
        if not targets.is_floating_point():
            classes = torch.arange(probabilities.shape[1], device=targets.device)
            chosen = targets.unsqueeze(-1) == classes
            targets = chosen.to(probabilities.dtype).movedim(-1, 1)
        smoothing = module.label_smoothing
        targets = (1 - smoothing) * targets + smoothing / probabilities.shape[1]
        return targets * super().of_cross_entropy(module, probabilities)


class _Step(ModuleExtension):
    """Module extension that backpropagates a diagonal.

    Args:
        derivatives: Derivatives of the module.
        params: Names of its parameters.
    """

    def __init__(self, derivatives: Any, params: Sequence[str] = ()) -> None:
        self.derivatives = derivatives
        for name in params:
            setattr(self, name, partial(self._parameter, name))
        super().__init__(params=list(params))

    def backpropagate(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Tensor
    ) -> Tensor:
        """Multiply with the squared Jacobian, and add the module's own curvature."""
        return self.through(module, g_inp, g_out, backproped)

    def through(self, module: Any, g_inp: Any, g_out: Any, h: Tensor) -> Tensor:
        """Compute the diagonal for the module's input from the one for its output."""
        raise NotImplementedError

    def of_parameter(self, name: str, module: Any, h: Tensor) -> Tensor:
        """Compute the diagonal for a parameter from the one for the module's output."""
        raise NotImplementedError

    def _parameter(
        self, name: str, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any
    ) -> Tensor:
        return self.of_parameter(name, module, backproped)

    def _times_jacobian(self, module: Any, g_inp: Any, g_out: Any, h: Tensor) -> Tensor:
        result: Tensor = self.derivatives.jac_t_mat_prod(module, g_inp, g_out, h)
        return result


class _Diagonal(_Step):
    """A module whose Jacobian is diagonal."""

    def through(self, module: Any, g_inp: Any, g_out: Any, h: Tensor) -> Tensor:
        """Multiply with the slopes twice."""
        for _ in range(2):
            h = self._times_jacobian(module, g_inp, g_out, h)
        if self.derivatives.hessian_is_zero(module):
            return h
        curvature: Tensor = self.derivatives.hessian_diagonal(module, g_inp, g_out)
        return h + curvature


class _Copies(_Step):
    """A module that copies inputs to outputs: its Jacobian has entries 0 and 1."""

    def through(self, module: Any, g_inp: Any, g_out: Any, h: Tensor) -> Tensor:
        """Multiply with the Jacobian."""
        return self._times_jacobian(module, g_inp, g_out, h)


class _Average(_Step):
    """Average pooling: entries of the Jacobian that belong to one output are equal."""

    def through(self, module: Any, g_inp: Any, g_out: Any, h: Tensor) -> Tensor:
        """Multiply each output with its Jacobian entry, then with the Jacobian."""
        one = module.input0[:1]
        sums = self.derivatives.input_jvp(module, torch.ones_like(one))
        for axis, inputs in enumerate(one.shape[2:]):
            shape = [1] * sums.dim()
            shape[axis + 2] = -1
            sums = sums / _counts(module, axis, inputs, sums).view(shape)
        return self._times_jacobian(module, g_inp, g_out, h * sums)


class _Layer(_Step):
    """A convolution or a ``Linear``."""

    derivatives: ConvDerivatives | DenseDerivatives

    def __init__(self, derivatives: ConvDerivatives | DenseDerivatives) -> None:
        super().__init__(derivatives, ("weight", "bias"))

    def __call__(self, extension: Any, module: Any, g_inp: Any, g_out: Any) -> None:
        """Save the diagonals, then backpropagate."""
        forget_output_size(module)
        super().__call__(extension, module, g_inp, g_out)

    def through(self, module: Any, g_inp: Any, g_out: Any, h: Tensor) -> Tensor:
        """Multiply with the squared Jacobian."""
        return self.derivatives.squared_input_vjp(module, h)

    def of_parameter(self, name: str, module: Any, h: Tensor) -> Tensor:
        """Multiply with squared inputs, or sum."""
        layer = Layer(module)
        if name == "weight":
            return layer.squared_weight_vjp(h)
        return layer.bias_gradients(h).sum(0)


class _BatchNorm(_Diagonal):
    """BatchNorm with fixed statistics, which scales each channel."""

    def __init__(self, derivatives: BatchNormDerivatives) -> None:
        super().__init__(derivatives, ("weight", "bias"))

    def check_hyperparameters_module_extension(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any
    ) -> None:
        """Raise an error if the batch's statistics couple its samples."""
        batch_norm_raise_error_if_train(module)

    def of_parameter(self, name: str, module: Any, h: Tensor) -> Tensor:
        """Multiply with squared normalised inputs, or sum."""
        own = self.derivatives
        if name == "weight":
            ones = h.new_ones(1, module.num_features)
            h = h * own.weight_jac_mat_prod(module, None, None, ones)[0]
        result: Tensor = own.param_mjp(name, module, None, None, h)
        return result


class _Loss(_Step):
    """A loss, where backpropagation starts."""

    def backpropagate(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any
    ) -> Tensor:
        """Compute the diagonal of the loss's Hessian."""
        x, own = module.input0.detach(), self.derivatives
        count = x.numel()
        if isinstance(own, MSELossDerivatives):
            h = torch.full_like(x, 2)
        elif isinstance(own, CrossEntropyLossDerivatives):
            own._check_2nd_order_parameters(module)
            h = ext.of_cross_entropy(module, x.softmax(1))
            count //= x.shape[1]
        else:
            own._check_is_default(module)
            h = x.sigmoid() * (-x).sigmoid()
        return h / max(count, 1) if module.reduction == "mean" else h


def _counts(module: Any, axis: int, inputs: int, sums: Tensor) -> Tensor:
    """Count the inputs along an axis that each output of a pool averages."""
    outputs = torch.arange(sums.shape[axis + 2], device=sums.device)
    if hasattr(module, "kernel_size"):
        size, stride, padding = (
            value if isinstance(value, int) else value[axis]
            for value in (module.kernel_size, module.stride, module.padding)
        )
        start = outputs * stride - padding
        end = start + size
    else:  # adaptive
        start = outputs * inputs // len(outputs)
        end = ((outputs + 1) * inputs + len(outputs) - 1) // len(outputs)
    return end.clamp(max=inputs) - start.clamp(min=0)
