"""Explicit padding for modes other than zeros, and its adjoint."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tn_extensions.conv import Conv, PaddingMode


def pad(x: Tensor, conv: Conv) -> Tensor:
    """Pad an input explicitly, unless the convolution pads with zeros.

    Args:
        x: Input, ``[N, C_in, I1, ...]``.
        conv: Hyper-parameters. With zero padding, ``x`` is returned as it is.

    Returns:
        The input of ``conv.explicitly_padded``.
    """
    if not conv.pads_explicitly or not x.numel():
        return x
    if conv.num_dims <= 3:  # the most that torch pads at once
        flat = [side for pair in reversed(conv.padding) for side in pair]
        return F.pad(x, flat, mode=conv.padding_mode)
    for axis, pair in enumerate(conv.padding, start=2):
        moved = x.movedim(axis, -1)
        rows = moved.reshape(1, -1, moved.shape[-1])
        padded = F.pad(rows, pair, mode=conv.padding_mode)
        x = padded.reshape(*moved.shape[:-1], -1).movedim(-1, axis)
    return x


def unpad(padded: Tensor, conv: Conv) -> Tensor:
    """Apply the adjoint of :func:`pad`: add padded entries to those they copy.

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


def source_positions(
    size: int,
    padding: tuple[int, int],
    mode: PaddingMode,
    device: torch.device | None = None,
) -> Tensor:
    """Find the position that each position of a padded axis is a copy of.

    Args:
        size: Size of the axis without padding.
        padding: Padding on the left and right.
        mode: Padding mode; not zeros.
        device: Device of the result. Default: the CPU.

    Returns:
        Positions from 0 to ``size - 1``, ``[left + size + right]``.
    """
    left, right = padding
    positions = torch.arange(-left, size + right, device=device)
    if mode == "circular":
        return positions % size
    if mode == "replicate":
        return positions.clamp(0, size - 1)
    last = size - 1  # reflect at both ends
    return last - (last - positions.abs()).abs()


def source_position(position: int, size: int, mode: PaddingMode) -> int:
    """Find the position that one position of a padded axis is a copy of.

    Args:
        position: Position; 0 is the first one without padding, so that positions of
            the left padding are negative.
        size: Size of the axis without padding.
        mode: Padding mode; not zeros.

    Returns:
        A position from 0 to ``size - 1``.
    """
    last = size - 1
    if mode == "circular":
        return position % size
    if mode == "replicate":
        return min(max(position, 0), last)
    return last - abs(last - abs(position))


def _unpad_axis(
    padded: Tensor, axis: int, size: int, padding: tuple[int, int], mode: PaddingMode
) -> Tensor:
    if not any(padding):
        return padded
    source = source_positions(size, padding, mode, padded.device)
    shape = list(padded.shape)
    shape[axis] = size
    return padded.new_zeros(shape).index_add(axis, source, padded)
