"""Derivatives of convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tn_extensions.backpack.derivatives.linear import LinearDerivatives
from tn_extensions.conv import Conv, PaddingMode


class ConvDerivatives(LinearDerivatives):
    """Derivatives of ``Conv1d/2d/3d`` and ``ConvTranspose1d/2d/3d``.

    One class for all: groups, every ``padding_mode``, ``'same'`` with unequal sides,
    ``output_padding``, and an ``output_size`` that was given to the forward pass.
    """

    def input_vjp(self, module: Any, g: Tensor) -> Tensor:
        """Apply the transposed Jacobian by torch's native kernel.

        Padding that is uneven or holds data is made explicit; its adjoint adds what the
        padding copied back to where it came from.
        """
        conv = conv_of(module)
        even = all(left == right for left, right in conv.padding)
        explicit = conv.pads_explicitly or not even
        padded = conv.explicitly_padded if explicit else conv
        result, _, _ = torch.ops.aten.convolution_backward(
            g.contiguous(),
            # torch asks for the input but reads its shape only
            g.new_empty(1).expand(g.shape[0], conv.in_channels, *padded.input_size),
            module.weight.detach().to(g.dtype),
            None,
            list(conv.stride),
            [left for left, _ in padded.padding],
            list(conv.dilation),
            conv.transposed,
            list(conv.output_padding),
            conv.groups,
            [True, False, False],
        )
        if explicit:
            for axis, dim in enumerate(conv.dims, start=2):
                result = _unpad(
                    result, axis, dim.input_size, dim.padding, conv.padding_mode
                )
        return result


def conv_of(module: Any) -> Conv:
    """Hyper-parameters of a convolution that ran a forward pass.

    Args:
        module: Module with ``input0`` and ``output`` of a forward pass.

    Returns:
        The convolution. The output's shape tells an ``output_size`` given to forward.
    """
    return Conv.from_module(module, module.input0.shape[2:], module.output.shape[2:])


def _unpad(
    padded: Tensor, axis: int, size: int, padding: tuple[int, int], mode: PaddingMode
) -> Tensor:
    """Adjoint of padding an axis that has the given size without padding."""
    left, right = padding
    if mode == "zeros" or not (left or right):
        return padded.narrow(axis, left, size)
    positions = torch.arange(-left, size + right, device=padded.device)
    if mode == "circular":
        source = positions % size
    elif mode == "replicate":
        source = positions.clamp(0, size - 1)
    else:  # reflect at both ends
        last = size - 1
        source = last - (last - positions.abs()).abs()
    shape = list(padded.shape)
    shape[axis] = size
    return padded.new_zeros(shape).index_add_(axis, source, padded)
