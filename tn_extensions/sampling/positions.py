"""Slices of tensors: several indices share an axis, as group and channel do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor


def merged(
    indices: Sequence[str], sizes: Mapping[str, int], kept: Mapping[str, Tensor]
) -> Tensor | None:
    """Positions along an axis at which some of its indices take their kept values.

    Args:
        indices: Indices of the axis, slowest first.
        sizes: Their sizes.
        kept: Kept values, of those of which not all are.

    Returns:
        Positions; None for all of them.
    """
    if not any(index in kept for index in indices):
        return None
    if len(indices) == 1:
        return kept[indices[0]]
    positions = torch.zeros(1, dtype=torch.int64)
    for index in indices:
        values = kept[index] if index in kept else torch.arange(sizes[index])
        positions = (positions[:, None] * sizes[index] + values).flatten()
    return positions


def select(tensor: Tensor, positions: Sequence[Tensor | None]) -> Tensor:
    """A copy of the slices at positions along each axis; all of them for None."""
    chosen = [axis for axis, kept in enumerate(positions) if kept is not None]
    first, *rest = positions
    samples = range(len(tensor)) if first is None else first.tolist()
    one_by_one = tensor.device.type == "cpu" and tensor[:1].numel() >= _LARGE
    if len(chosen) > 1 and one_by_one and samples:
        # what is between two selections stays in cache
        return torch.stack([select(tensor[sample], rest) for sample in samples])
    for axis in chosen:
        kept = positions[axis]
        assert kept is not None
        tensor = _take(tensor, axis, kept.to(tensor.device))
    return tensor


_LARGE = 2**12
"""Entries of a sample from which on it is worth calls of its own."""


def _take(tensor: Tensor, axis: int, kept: Tensor) -> Tensor:
    if axis < tensor.dim() - 1:
        return tensor.index_select(axis, kept)
    # ten times as fast along the last axis
    return tensor.gather(axis, kept.expand(*tensor.shape[:-1], len(kept)))


def place(
    tensor: Tensor, positions: Sequence[Tensor | None], shape: Sequence[int]
) -> Tensor:
    """Slices at positions along each axis (None for all), zeros elsewhere.

    Args:
        tensor: The slices.
        positions: Where they go.
        shape: Shape of the result.
    """
    axis = tensor.dim()
    while axis:
        last, axis = axis, axis - 1
        if positions[axis] is None:
            continue
        # neighbours go in one go, as the last axis takes long
        while axis and positions[axis - 1] is not None:
            axis -= 1
        own, extents = positions[axis:last], shape[axis:last]
        flat = torch.zeros((), dtype=torch.int64)
        for kept, extent in zip(own, extents, strict=True):
            assert kept is not None
            flat = flat[..., None] * extent + kept
        joint = tensor.flatten(axis, last - 1)
        whole = list(joint.shape)
        whole[axis] = prod(extents)
        where = flat.flatten().to(tensor.device)
        joint = tensor.new_zeros(whole).index_copy_(axis, where, joint)
        tensor = joint.unflatten(axis, list(extents))
    return tensor


def scaled(tensor: Tensor, axis: int, factor: Tensor) -> Tensor:
    """Each slice of an axis times its factor."""
    shape = [-1 if each == axis else 1 for each in range(tensor.dim())]
    return tensor * factor.to(tensor.device, tensor.dtype).reshape(shape)


def find(values: Tensor, kept: Tensor) -> Tensor:
    """Where non-negative values stand among ascending ones; -1 if they do not."""
    if not len(kept):
        return torch.full_like(values, -1)
    where = torch.searchsorted(kept, values).clamp(max=len(kept) - 1)
    return torch.where(kept[where] == values, where, -1)
