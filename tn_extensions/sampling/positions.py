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
    values = [
        kept[index] if index in kept else torch.arange(sizes[index])
        for index in indices
    ]
    return _flat(values, [sizes[index] for index in indices])


def _flat(positions: Sequence[Tensor], extents: Sequence[int]) -> Tensor:
    """Positions along several axes as those along all of them, the last one fastest."""
    result, *others = positions
    for own, extent in zip(others, extents[1:], strict=True):
        result = (result[:, None] * extent + own).flatten()
    return result


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
    last = tensor.dim()
    while last:
        # neighbours go in one go, as the last axis takes long
        own: list[Tensor] = []
        while len(own) < last and (kept := positions[last - 1 - len(own)]) is not None:
            own.insert(0, kept)
        if own:
            axis = last - len(own)
            extents = list(shape[axis:last])
            joint = tensor.flatten(axis, last - 1)
            whole = [*joint.shape[:axis], prod(extents), *joint.shape[axis + 1 :]]
            where = _flat(own, extents).to(tensor.device)
            joint = tensor.new_zeros(whole).index_copy_(axis, where, joint)
            tensor = joint.unflatten(axis, extents)
        last -= max(1, len(own))
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
