"""Padding that holds data, made explicit, and its adjoint."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tn_extensions.conv import Conv, PaddingMode


def pad(x: Tensor, conv: Conv) -> Tensor:
    """Pad an input as its convolution does, where the padding holds data.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        conv: Hyper-parameters; with zero padding, ``x`` stays as it is.

    Returns:
        Input of ``conv.explicitly_padded``.
    """
    if not conv.pads_explicitly or not x.numel():
        return x
    if conv.num_dims <= 3:  # as far as torch goes at once
        flat = [side for pair in reversed(conv.padding) for side in pair]
        return F.pad(x, flat, mode=conv.padding_mode)
    for axis, pair in enumerate(conv.padding, start=2):
        moved = x.movedim(axis, -1)
        rows = moved.reshape(1, -1, moved.shape[-1])
        padded = F.pad(rows, pair, mode=conv.padding_mode)
        x = padded.reshape(*moved.shape[:-1], -1).movedim(-1, axis)
    return x


def unpad(padded: Tensor, conv: Conv) -> Tensor:
    """Adjoint of :func:`pad`: adds what was copied back to where it came from.

    Args:
        padded: ``[..., I1, ...]`` with the spatial sizes of ``conv.explicitly_padded``.
        conv: Hyper-parameters.

    Returns:
        ``[..., I1, ...]`` with the spatial sizes of ``conv``.
    """
    if not conv.pads_explicitly:
        return padded
    for axis, dim in enumerate(reversed(conv.dims), start=1):
        padded = _unpad_axis(
            padded, -axis, dim.input_size, dim.padding, conv.padding_mode
        )
    return padded


def _unpad_axis(
    padded: Tensor, axis: int, size: int, padding: tuple[int, int], mode: PaddingMode
) -> Tensor:
    left, right = padding
    if not (left or right):
        return padded
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
    return padded.new_zeros(shape).index_add(axis, source, padded)
