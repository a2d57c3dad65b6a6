"""What BackPACK's Kronecker extensions do at a module: factors and backpropagation."""

from __future__ import annotations

from typing import Any, Literal
from warnings import warn

import torch
from backpack.core.derivatives import (
    avgpool1d,
    avgpool3d,
    elu,
    leakyrelu,
    logsigmoid,
    maxpool1d,
    maxpool3d,
    selu,
)
from backpack.extensions.secondorder.hbp.hbp_options import BackpropStrategy
from backpack.extensions.secondorder.hbp.hbpbase import HBPBaseModule
from torch import Tensor, nn
from torch.nn import Module

from tn_extensions import functional
from tn_extensions.backpack.derivatives import (
    AdaptiveAvgPoolDerivatives,
    BatchNormDerivatives,
    ConvDerivatives,
    conv_of,
)
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
            return _squeezed(functional.kfac_reduce(x, conv))
        scale = None
        if approx == "expand":
            positions = module.output.shape[2:].numel()
            scale = 1 / (max(x.shape[0], 1) * positions)
        return _squeezed(functional.kfac_expand(x, conv, scale=scale))

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
        split = average.view(groups, channels, positions, groups, channels, positions)
        equation = "gaogbo->gab" if approx == "expand" else "gaogbp->gab"
        return torch.einsum(equation, split)


def _squeezed(factor: Tensor) -> Tensor:
    """Without groups, factors are matrices as in BackPACK."""
    return factor[0] if factor.shape[0] == 1 else factor


class SkipParameters(HBPBaseModule):
    """Backpropagates, and warns that a module's parameters get no factors."""

    def __call__(self, extension: Any, module: Any, g_inp: Any, g_out: Any) -> None:
        """Warn of each parameter that is left out, then backpropagate."""
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                message = describe(
                    type(extension).__name__,
                    f"{type(module).__name__}.{name}",
                    "belong to a layer with Kronecker factors",
                    f"a parameter of shape {list(parameter.shape)}",
                    f"It is skipped and gets no {extension.savefield!r}",
                )
                warn(message, UserWarning, stacklevel=2)
        super().__call__(extension, module, g_inp, g_out)


CONVOLUTIONS: tuple[type[Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def module_extensions() -> dict[type[Module], HBPBaseModule]:
    """Extensions by module type: convolutions, and modules to backpropagate through."""
    conv, norm = KroneckerConv(), SkipParameters(BatchNormDerivatives())
    pool = HBPBaseModule(AdaptiveAvgPoolDerivatives())
    result: dict[type[Module], HBPBaseModule] = dict.fromkeys(CONVOLUTIONS, conv)
    result |= dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), norm)
    result |= dict.fromkeys(
        (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), pool
    )
    # BackPACK has their derivatives, but its Kronecker extensions do not list them
    known = {
        nn.MaxPool1d: maxpool1d.MaxPool1DDerivatives,
        nn.MaxPool3d: maxpool3d.MaxPool3DDerivatives,
        nn.AvgPool1d: avgpool1d.AvgPool1DDerivatives,
        nn.AvgPool3d: avgpool3d.AvgPool3DDerivatives,
        nn.LeakyReLU: leakyrelu.LeakyReLUDerivatives,
        nn.ELU: elu.ELUDerivatives,
        nn.SELU: selu.SELUDerivatives,
        nn.LogSigmoid: logsigmoid.LogSigmoidDerivatives,
    }
    return result | {kind: HBPBaseModule(made()) for kind, made in known.items()}
