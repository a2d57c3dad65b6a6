"""Derivatives of convolutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tn_extensions import functional
from tn_extensions.backpack.derivatives.linear import LinearDerivatives
from tn_extensions.conv import Conv


class ConvDerivatives(LinearDerivatives):
    """Derivatives of ``Conv1d/2d/3d`` and ``ConvTranspose1d/2d/3d``.

    One class for all: groups, every ``padding_mode``, ``'same'`` with unequal sides,
    ``output_padding``, and an ``output_size`` that was given to the forward pass.
    """

    def input_vjp(self, module: Any, g: Tensor) -> Tensor:
        """Apply the transposed Jacobian."""
        weight = module.weight.detach().to(g.dtype)
        return functional.input_vjp(weight, g, conv_of(module)).to(g.dtype)


def conv_of(module: Any) -> Conv:
    """Hyper-parameters of a convolution that ran a forward pass.

    Args:
        module: Module with ``input0`` and ``output`` of a forward pass.

    Returns:
        The convolution. The output's shape tells an ``output_size`` given to forward.
    """
    return Conv.from_module(module, module.input0.shape[2:], module.output.shape[2:])
