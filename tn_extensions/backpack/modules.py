"""What BackPACK's Kronecker extensions do at a module: factors and backpropagation."""

from __future__ import annotations

from typing import Any, Literal
from warnings import warn

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
from backpack.custom_module.branching import SumModule
from backpack.custom_module.scale_module import ScaleModule
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
    LinearModuleDerivatives,
    MaxPoolDerivatives,
    conv_of,
)
from tn_extensions.backpack.derivatives.batchnorm import uses_batch_statistics
from tn_extensions.errors import describe

Approx = Literal["backpack", "expand", "reduce"]


class KroneckerConv(HBPBaseModule):
    """Kronecker factors of convolutions, transposed or not, of any dimension.

    With patches ``U`` (``[N, G, D, O]``), ``D = CI * K``, and a square root ``S`` of
    the loss GGN with respect to the output (``[V, N, G, CO, O]``; it holds the
    averaging over the batch), the factors of a group are

    | approx | output factor ``B`` | input factor ``A`` |
    | - | - | - |
    | backpack | ``sum_{v,n} (sum_o S)(sum_o S)^T`` | ``1/N sum_{n,o} U U^T`` |
    | expand | ``sum_{v,n,o} S S^T`` | ``1/(N O) sum_{n,o} U U^T`` |
    | reduce | as backpack | ``1/(N O^2) sum_n (sum_o U)(sum_o U)^T`` |
    """

    def __init__(self) -> None:
        super().__init__(ConvDerivatives(), params=["weight", "bias"])

    def __call__(self, extension: Any, module: Any, g_inp: Any, g_out: Any) -> None:
        """Save factors, then backpropagate."""
        # BackPACK takes an output_size given by position for a second input
        vars(module).pop("input1", None)
        super().__call__(extension, module, g_inp, g_out)

    def weight(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Tensor
    ) -> list[Tensor]:
        """Factors ``[B, A]`` of the weight."""
        return [
            *self.bias(ext, module, g_inp, g_out, backproped),
            self._input_factor(ext.approx, module),
        ]

    def bias(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Tensor
    ) -> list[Tensor]:
        """Factor ``[B]`` of the bias."""
        if BackpropStrategy.is_batch_average(ext.get_backprop_strategy()):
            factor = self._from_average(ext.approx, module, backproped)
        else:
            factor = self._from_sqrt(ext.approx, module, backproped)
        return [_squeezed(factor)]

    @staticmethod
    def _input_factor(approx: Approx, module: Any) -> Tensor:
        conv = conv_of(module)
        x = module.input0
        if approx == "reduce":
            return _squeezed(functional.kfac_reduce(x.detach(), conv))
        scale = None
        if approx == "expand":
            positions = module.output.shape[2:].numel()
            scale = 1 / (max(x.shape[0], 1) * positions)
        return _squeezed(functional.kfac_expand(x.detach(), conv, scale=scale))

    @staticmethod
    def _from_sqrt(approx: Approx, module: Any, sqrt: Tensor) -> Tensor:
        per_group = sqrt.flatten(3).unflatten(2, (module.groups, -1))
        if approx != "expand":
            per_group = per_group.sum(-1, keepdim=True)
        flat = per_group.permute(2, 3, 0, 1, 4).flatten(2)
        return flat @ flat.mT

    @staticmethod
    def _from_average(approx: Approx, module: Any, average: Tensor) -> Tensor:
        groups = module.groups
        channels = module.out_channels // groups
        positions = average.shape[0] // (groups * channels)
        split = average.reshape(2 * (groups, channels, positions))
        equation = "gaogbo->gab" if approx == "expand" else "gaogbp->gab"
        return torch.einsum(equation, split)


def _squeezed(factor: Tensor) -> Tensor:
    """Without groups, factors are matrices as in BackPACK."""
    return factor[0] if factor.shape[0] == 1 else factor


class BatchNorm(HBPBaseModule):
    """Backpropagates through batch normalisation, and warns that it gets no factors."""

    def __init__(self) -> None:
        super().__init__(BatchNormDerivatives())

    def __call__(self, extension: Any, module: Any, g_inp: Any, g_out: Any) -> None:
        """Warn of each parameter that is left out, then backpropagate."""
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                message = describe(
                    type(extension).__name__,
                    f"{type(module).__name__}.{name}",
                    "belong to a convolution or Linear to have Kronecker factors",
                    f"a parameter of shape {list(parameter.shape)}",
                    f"It is skipped and has no {extension.savefield!r}",
                )
                warn(message, UserWarning, stacklevel=2)
        super().__call__(extension, module, g_inp, g_out)

    def backpropagate_sqrt(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, H: Tensor
    ) -> Tensor:
        """Backpropagate a square root; an exact one by a column for each sample.

        Where samples are coupled, columns of different samples may no longer share a
        ``v``. Monte-Carlo samples may: they are independent with mean zero, so that
        their mixed terms vanish on average.
        """
        exact = ext.get_loss_hessian_strategy() == LossHessianStrategy.EXACT
        if exact and uses_batch_statistics(module) and len(H) == ext.num_columns:
            H = column_per_sample(H)
        result: Tensor = super().backpropagate_sqrt(ext, module, g_inp, g_out, H)
        return result

    def second_order_module_effects(self, module: Any, g_inp: Any, g_out: Any) -> None:
        """The GGN leaves the curvature of modules out."""
        return


def column_per_sample(sqrt: Tensor) -> Tensor:
    """Give each sample columns of its own: ``[V, N, ...]`` to ``[V * N, N, ...]``.

    Args:
        sqrt: Square root of a GGN that has a block for each sample.

    Returns:
        Square root of the same GGN. The column ``(v, n)`` is zero outside sample ``n``.
    """
    num_data = sqrt.shape[1]
    sample = torch.arange(num_data, device=sqrt.device)
    columns = sqrt.new_zeros(len(sqrt), num_data, *sqrt.shape[1:])
    columns[:, sample, sample] = sqrt
    return columns.flatten(0, 1)


class Loss(HBPLoss):
    """Starts backpropagation in the model's dtype, and notes the columns per sample."""

    def backpropagate(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: None
    ) -> Tensor:
        """Hessian of the loss, or a square root of it."""
        hessian: Tensor = super().backpropagate(ext, module, g_inp, g_out, backproped)
        ext.num_columns = len(hessian)
        return hessian.to(module.input0.dtype)


class Sum(HBPSumModule):
    """Backpropagates a square root through a sum of branches."""

    def backpropagate_batch_average(
        self, ext: Any, module: Any, g_inp: Any, g_out: Any, H: Tensor
    ) -> Tensor:
        """Refuse: terms between branches would be needed.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(branches_refused(type(ext).__name__))


def branches_refused(extension: str) -> str:
    """What to tell a user whose model has branches that the extension cannot do."""
    return describe(
        extension,
        "model",
        "be a chain of modules",
        "one with branches, between which terms of the average are unknown",
        "Supported with branches: KFAC, KFLR",
    )


CONVOLUTIONS: tuple[type[Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def module_extensions() -> dict[type[Module], HBPBaseModule]:
    """Extensions by module type: those that differ from stock's or that stock lacks."""
    result: dict[type[Module], HBPBaseModule] = {
        nn.MSELoss: Loss(mseloss.MSELossDerivatives()),
        nn.CrossEntropyLoss: Loss(crossentropyloss.CrossEntropyLossDerivatives()),
        nn.BCEWithLogitsLoss: Loss(bcewithlogitsloss.BCELossWithLogitsDerivatives()),
        SumModule: Sum(),
        # BackPACK has their derivatives, but its Kronecker extensions do not list them
        nn.LeakyReLU: HBPBaseModule(leakyrelu.LeakyReLUDerivatives()),
        nn.ELU: HBPBaseModule(elu.ELUDerivatives()),
        nn.SELU: HBPBaseModule(selu.SELUDerivatives()),
        nn.LogSigmoid: HBPBaseModule(logsigmoid.LogSigmoidDerivatives()),
    }
    result |= dict.fromkeys(CONVOLUTIONS, KroneckerConv())
    result |= dict.fromkeys(
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), BatchNorm()
    )
    result |= dict.fromkeys(
        (
            nn.AvgPool1d,
            nn.AvgPool2d,
            nn.AvgPool3d,
            nn.AdaptiveAvgPool1d,
            nn.AdaptiveAvgPool2d,
            nn.AdaptiveAvgPool3d,
            nn.Identity,
            ScaleModule,
        ),
        HBPBaseModule(LinearModuleDerivatives()),
    )
    result |= dict.fromkeys(
        (
            nn.MaxPool1d,
            nn.MaxPool2d,
            nn.MaxPool3d,
            nn.AdaptiveMaxPool1d,
            nn.AdaptiveMaxPool2d,
            nn.AdaptiveMaxPool3d,
        ),
        HBPBaseModule(MaxPoolDerivatives()),
    )
    return result
