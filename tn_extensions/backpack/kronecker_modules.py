"""Module extensions of KFAC, KFLR and KFRA: factors and backpropagation."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from backpack.core.derivatives import (
    bcewithlogitsloss,
    crossentropyloss,
    elu,
    leakyrelu,
    logsigmoid,
    mseloss,
    selu,
)
from backpack.core.derivatives.basederivatives import BaseDerivatives
from backpack.custom_module.branching import SumModule
from backpack.extensions.module_extension import ModuleExtension
from backpack.extensions.secondorder.hbp.custom_module import HBPSumModule
from backpack.extensions.secondorder.hbp.hbp_options import (
    BackpropStrategy,
    LossHessianStrategy,
)
from backpack.extensions.secondorder.hbp.hbpbase import HBPBaseModule
from backpack.extensions.secondorder.hbp.losses import HBPLoss
from torch import Tensor, nn
from torch.nn import Module

from tn_extensions import functional
from tn_extensions.backpack.derivatives import (
    BatchNormDerivatives,
    ConvDerivatives,
    DenseDerivatives,
)
from tn_extensions.backpack.derivatives.batchnorm import (
    input_of_weight,
    uses_batch_statistics,
)
from tn_extensions.backpack.layer import Layer
from tn_extensions.backpack.modules import (
    BATCH_NORMS,
    CONVOLUTIONS,
    forget_output_size,
    passive,
)
from tn_extensions.errors import describe

Approx = Literal["backpack", "expand", "reduce"]


class KroneckerLayer(HBPBaseModule):
    """Kronecker factors of convolutions, transposed or not, and of ``Linear``.

    With patches ``U`` (``[N, G, D, O]``), ``D = CI * K``, and a square root ``S`` of
    the loss's GGN by the output (``[V, N, G, CO, O]``; it contains the scaling of the
    loss), the factors of a group are

    | approx | output factor ``B`` | input factor ``A`` |
    | - | - | - |
    | backpack | ``sum_{v,n} (sum_o S)(sum_o S)^T`` | ``1/N sum_{n,o} U U^T`` |
    | expand | ``sum_{v,n,o} S S^T`` | ``1/(N O) sum_{n,o} U U^T`` |
    | reduce | as for backpack | ``1/(N O^2) sum_n (sum_o U)(sum_o U)^T`` |

    For a ``Linear``, axes between the first and the last are positions.

    Args:
        derivatives: Derivatives of the layer.
    """

    takes_columns = True

    def __init__(self, derivatives: BaseDerivatives) -> None:
        super().__init__(derivatives, params=["weight", "bias"])

    def __call__(self, extension: Any, module: Any, g_inp: Any, g_out: Any) -> None:
        """Save factors, then backpropagate."""
        forget_output_size(module)
        super().__call__(extension, module, g_inp, g_out)

    def weight(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any
    ) -> list[Tensor]:
        """Compute the factors ``[B, A]`` of the weight."""
        return [
            *self.bias(ext, module, g_inp, g_out, backproped),
            _input_factor(Layer(module), ext.approx),
        ]

    def bias(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any
    ) -> list[Tensor]:
        """Compute the factor ``[B]`` of the bias."""
        layer, all_positions = Layer(module), ext.approx == "expand"
        if BackpropStrategy.is_batch_average(ext.get_backprop_strategy()):
            factor = _from_average(layer, backproped, all_positions)
        else:
            function = functional.gradient_factor_reduce
            if all_positions:
                function = functional.gradient_factor_expand
            factor = layer.output_factor(function, backproped.copy().take())
        return [_squeezed(factor)]


def _input_factor(layer: Layer, approx: Approx) -> Tensor:
    if approx == "reduce":
        return _squeezed(layer.input_factor(functional.kfac_reduce))
    scale = None
    if approx == "expand":
        scale = 1 / (max(layer.num_data, 1) * layer.num_positions)
    return _squeezed(layer.input_factor(functional.kfac_expand, scale=scale))


def _from_average(layer: Layer, average: Tensor, all_positions: bool) -> Tensor:
    groups, channels = layer.groups, layer.out_channels // layer.groups
    positions = len(average) // layer.out_channels
    if layer.is_linear:  # positions come first
        split = average.reshape(2 * (positions, channels)).permute(1, 0, 3, 2)
    else:
        split = average
    split = split.reshape(2 * (groups, channels, positions))
    equation = "gaogbo->gab" if all_positions else "gaogbp->gab"
    return torch.einsum(equation, split)


def _squeezed(factor: Tensor) -> Tensor:
    """Remove the axis of a single group: factors are matrices then, as in BackPACK."""
    return factor[0] if factor.shape[0] == 1 else factor


class KroneckerBatchNorm(HBPBaseModule):
    """Blocks of the GGN of BatchNorm's scale and shift, ``C`` numbers each.

    They replace Kronecker factors and add no approximation. With normalised inputs
    ``x`` and a square root ``S`` as in :class:`KroneckerLayer`, a block is ``sum_{v,n}
    s s^T``, where ``s = sum_o S x`` for the scale and ``s = sum_o S`` for the shift.
    With an average ``M`` instead of ``S``, it is ``1/N sum_n J_n^T M J_n``, where
    ``J_n`` is the Jacobian of the output of sample ``n`` by the parameter.
    """

    takes_columns = True

    def __init__(self) -> None:
        super().__init__(BatchNormDerivatives(), params=["weight", "bias"])

    def weight(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any
    ) -> list[Tensor]:
        """Compute the block ``[F]`` of the scale, ``[C, C]``."""
        return [self._block("weight", ext, module, backproped)]

    def bias(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any
    ) -> list[Tensor]:
        """Compute the block ``[F]`` of the shift, ``[C, C]``."""
        return [self._block("bias", ext, module, backproped)]

    def _block(self, name: str, ext: Any, module: Any, backproped: Any) -> Tensor:
        if BackpropStrategy.is_batch_average(ext.get_backprop_strategy()):
            average: Tensor = backproped
            if name == "weight":
                x = input_of_weight(module, average.dtype).flatten(1)
                average = average * (x.T @ x).div_(max(len(x), 1))
            channels = module.num_features
            positions = len(average) // channels
            return average.reshape(2 * (channels, positions)).sum((1, 3))
        block = None
        for vectors in backproped.copy().take():
            gradients = self.derivatives.param_mjp(
                name, module, None, None, vectors, sum_batch=False
            )
            rows = gradients.flatten(0, 1)
            block = rows.T @ rows if block is None else block.addmm_(rows.T, rows)
        return cast(Tensor, block)

    def couples(self, ext: Any, module: Any) -> bool:
        """Tell whether each sample needs its own columns from here on.

        Monte-Carlo samples need none: they are independent with mean zero, so that
        mixed terms vanish in expectation.
        """
        exact = ext.get_loss_hessian_strategy() == LossHessianStrategy.EXACT
        return exact and uses_batch_statistics(module)

    def second_order_module_effects(self, module: Any, g_inp: Any, g_out: Any) -> None:
        """Do nothing: the GGN ignores the curvature of modules."""
        return


class Loss(HBPLoss):
    """A loss; backpropagation starts in the model's dtype."""

    def backpropagate(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: None
    ) -> Tensor:
        """Compute the Hessian of the loss, or a square root of it."""
        hessian: Tensor = super().backpropagate(ext, module, g_inp, g_out, backproped)
        return hessian.to(module.input0.dtype)


class Sum(HBPSumModule):
    """A sum of branches; square roots are backpropagated, averages are refused."""

    def backpropagate_batch_average(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, H: Tensor
    ) -> Tensor:
        """Raise an error: the mixed terms of branches are unknown."""
        raise NotImplementedError(branches_refused(type(ext).__name__))


def branches_refused(extension: str) -> str:
    """Return the error message for a model with branches, which are not supported."""
    return describe(
        extension,
        "model",
        "be a chain of modules",
        "one with branches, whose mixed terms in the average are unknown",
        "Supported with branches: KFAC, KFLR",
    )


def module_extensions() -> dict[type[Module], ModuleExtension]:
    """Return module extensions that BackPACK lacks, or that differ from its own."""
    result: dict[type[Module], ModuleExtension] = {
        nn.MSELoss: Loss(mseloss.MSELossDerivatives()),
        nn.CrossEntropyLoss: Loss(crossentropyloss.CrossEntropyLossDerivatives()),
        nn.BCEWithLogitsLoss: Loss(bcewithlogitsloss.BCELossWithLogitsDerivatives()),
        SumModule: Sum(),
        nn.Linear: KroneckerLayer(DenseDerivatives()),
        # BackPACK has these derivatives, but does not use them for Kronecker factors
        nn.LeakyReLU: HBPBaseModule(leakyrelu.LeakyReLUDerivatives()),
        nn.ELU: HBPBaseModule(elu.ELUDerivatives()),
        nn.SELU: HBPBaseModule(selu.SELUDerivatives()),
        nn.LogSigmoid: HBPBaseModule(logsigmoid.LogSigmoidDerivatives()),
    }
    result |= passive(HBPBaseModule)
    result |= dict.fromkeys(CONVOLUTIONS, KroneckerLayer(ConvDerivatives()))
    result |= dict.fromkeys(BATCH_NORMS, KroneckerBatchNorm())
    return result
