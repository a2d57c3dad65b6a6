"""Slices of tensors at positions along several axes: read, written, looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor


def flat(positions: Sequence[Tensor], extents: Sequence[int]) -> Tensor:
    """Positions along several axes as those along all of them, the last one fastest."""
    result, *others = positions
    for own, extent in zip(others, extents[1:], strict=True):
        result = (result[:, None] * extent + own).flatten()
    return result


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
    return flat(values, [sizes[index] for index in indices])


def select(tensor: Tensor, positions: Sequence[Tensor | None]) -> Tensor:
    """Copy the slices at positions along each axis; all of them for None."""
    *_, last = positions
    chosen = [axis for axis, own in enumerate(positions[:-1]) if own is not None]
    # in one go, unless that would copy the whole tensor first
    groups = [(axis, axis + 1) for axis in chosen]
    if chosen and tensor.is_contiguous():
        groups = [(chosen[0], chosen[-1] + 1)]
    for first, end in groups:
        extents = tensor.shape[first:end]
        own = [
            torch.arange(extent) if kept is None else kept
            for kept, extent in zip(positions[first:end], extents, strict=True)
        ]
        where = flat(own, extents).to(tensor.device)
        tensor = tensor.flatten(first, end - 1).index_select(first, where)
        tensor = tensor.unflatten(first, [len(each) for each in own])
    if last is not None:  # ten times as fast as index_select there
        where = last.to(tensor.device).expand(*tensor.shape[:-1], -1)
        tensor = tensor.gather(tensor.dim() - 1, where)
    return tensor


def place(
    tensor: Tensor, positions: Sequence[Tensor | None], shape: Sequence[int]
) -> Tensor:
    """Write slices to positions along each axis (None for all), zeros elsewhere.

    Args:
        tensor: The slices.
        positions: Where they go.
        shape: Shape of the result.
    """
    # neighbouring axes in one go, from the last one, which takes longest
    ends = [axis for axis, own in enumerate([*positions, None]) if own is None]
    for before, end in reversed([*pairwise([-1, *ends])]):
        first = before + 1
        own = [each for each in positions[first:end] if each is not None]
        if own:
            extents = list(shape[first:end])
            where = flat(own, extents).to(tensor.device)
            joint = tensor.flatten(first, end - 1)
            whole = [*joint.shape]
            whole[first] = torch.Size(extents).numel()
            joint = tensor.new_zeros(whole).index_copy_(first, where, joint)
            tensor = joint.unflatten(first, extents)
    return tensor


def find(values: Tensor, kept: Tensor) -> Tensor:
    """Where non-negative values stand among ascending ones; -1 if they do not."""
    if not len(kept):
        return torch.full_like(values, -1)
    where = torch.searchsorted(kept, values).clamp(max=len(kept) - 1)
    return torch.where(kept[where] == values, where, -1)
