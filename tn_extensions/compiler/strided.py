"""Operands as strided views, without copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from tn_extensions.compiler.allocate import reshaped
from tn_extensions.network import Operand


class Layout(NamedTuple):
    """Shape, strides and offset of a strided view of a tensor."""

    shape: list[int]
    strides: list[int]
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """View a tensor, which must have the strides that the layout was made for."""
        if 0 in self.shape:
            return tensor.new_empty(self.shape)
        start = tensor.storage_offset() + self.offset
        return tensor.as_strided(self.shape, self.strides, start)

    def merges(self, groups: Iterable[int]) -> bool:
        """Tell whether groups of consecutive axes can be merged without a copy."""
        start = 0
        for length in groups:
            axes = zip(
                self.shape[start : start + length],
                self.strides[start : start + length],
                strict=True,
            )
            own = [(size, stride) for size, stride in axes if size != 1]
            for (_, slow), (size, fast) in zip(own, own[1:], strict=False):
                if slow != size * fast:
                    return False
            start += length
        return True


def layout(
    operand: Operand,
    order: Sequence[str],
    sizes: Mapping[str, int],
    strides: Sequence[int],
) -> Layout:
    """Return the layout in which a tensor of given strides has one axis per index."""
    offset = 0
    found = dict.fromkeys(order, 0)
    for axis, stride in zip(operand.axes, strides, strict=True):
        offset += axis.position.start * stride
        for index, step in axis.position.terms:
            found[index] += step * stride
    carried = set(operand.indices)
    shape = [sizes[index] if index in carried else 1 for index in order]
    return Layout(shape, [found[index] for index in order], offset)


class View:
    """View an operand's tensor with one axis per index, in order.

    Args:
        operand: The operand.
        order: The indices; those that the operand lacks get axes of size one.
        sizes: Sizes of all indices.
    """

    def __init__(
        self, operand: Operand, order: Sequence[str], sizes: Mapping[str, int]
    ) -> None:
        self._operand, self._order, self._sizes = operand, tuple(order), dict(sizes)
        self._layouts: dict[tuple[int, ...], Layout] = {}  # few strides occur

    def __call__(self, tensor: Tensor) -> Tensor:
        """View a tensor."""
        strides = tensor.stride()
        found = self._layouts.get(strides)
        if found is None:
            found = layout(self._operand, self._order, self._sizes, strides)
            self._layouts[strides] = found
        return found.of(tensor)


def pad(tensor: Tensor, paddings: Mapping[int, tuple[int, int]]) -> Tensor:
    """Zero-pad some axes; return the tensor itself if there is nothing to pad."""
    if not any(map(any, paddings.values())):
        return tensor
    flat: list[int] = []
    for axis in reversed(range(min(paddings), tensor.dim())):
        flat.extend(paddings.get(axis, (0, 0)))
    return F.pad(tensor, flat)


def arrangement(
    present: Sequence[str], axes: Iterable[Sequence[str]], sizes: Mapping[str, int]
) -> Callable[[Tensor], Tensor]:
    """Return a function that permutes and merges axes.

    Args:
        present: Indices of a tensor in order; its axes may be merged or split.
        axes: Indices of each axis of the result.
        sizes: Sizes of the indices.

    Returns:
        The function. It returns the tensor or a view of it if it can.
    """
    axes = [tuple(axis) for axis in axes]
    shape = tuple(prod(sizes[index] for index in axis) for axis in axes)
    permutation = [present.index(index) for axis in axes for index in axis]
    if permutation == sorted(permutation):
        return lambda t: t if t.shape == shape else reshaped(t, shape)
    split = [sizes[index] for index in present]
    return lambda t: reshaped(t.reshape(split).permute(permutation), shape)


def contiguous_strides(shape: Sequence[int]) -> list[int]:
    """Return the strides of a contiguous tensor."""
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]
