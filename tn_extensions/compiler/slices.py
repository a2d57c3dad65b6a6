"""Slices of tensors at positions along several axes: read, write and find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor


def flat(positions: Sequence[Tensor], extents: Sequence[int]) -> Tensor:
    """Combine positions along several axes to positions along the flattened axes."""
    result, *others = positions
    for own, extent in zip(others, extents[1:], strict=True):
        result = (result[:, None] * extent + own).flatten()
    return result


def merged(
    indices: Sequence[str], sizes: Mapping[str, int], kept: Mapping[str, Tensor]
) -> Tensor | None:
    """Find the positions along an axis at which its indices take their kept values.

    Args:
        indices: Indices of the axis, slowest first.
        sizes: Sizes of the indices.
        kept: Kept values by index; all values of other indices are kept.

    Returns:
        The positions; None for all of them.
    """
    if not any(index in kept for index in indices):
        return None
    values = [
        kept[index] if index in kept else torch.arange(sizes[index])
        for index in indices
    ]
    return flat(values, [sizes[index] for index in indices])


def select(tensor: Tensor, positions: Sequence[Tensor | None]) -> Tensor:
    """Copy the slices at positions along each axis; None stands for all positions."""
    *_, last = positions
    chosen = [axis for axis, own in enumerate(positions[:-1]) if own is not None]
    # in one call, unless it would copy the whole tensor first
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
    if last is not None:  # along the last axis, ten times as fast as index_select
        where = last.to(tensor.device).expand(*tensor.shape[:-1], -1)
        tensor = tensor.gather(tensor.dim() - 1, where)
    return tensor


def place(
    tensor: Tensor, positions: Sequence[Tensor | None], shape: Sequence[int]
) -> Tensor:
    """Place slices at positions along each axis, and zeros elsewhere.

    Args:
        tensor: The slices.
        positions: Their positions along each axis; None stands for all positions.
        shape: Shape of the result.

    Returns:
        The result.
    """
    # neighbouring axes in one call, the last ones first, since they take longest
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
    """Find the places of non-negative values among ascending ones; -1 if missing."""
    if not len(kept):
        return torch.full_like(values, -1)
    where = torch.searchsorted(kept, values).clamp(max=len(kept) - 1)
    return torch.where(kept[where] == values, where, -1)
