"""Unfold: read a single operand through its patterns, as overlapping strided views."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.allocate import empty, reshaped
from tn_extensions.compiler.candidate import Candidate, Operation, Target, Tensors
from tn_extensions.compiler.strided import (
    Layout,
    View,
    contiguous_strides,
    layout,
    pad,
)
from tn_extensions.network import Operand, Pattern, TensorNetwork
from tn_extensions.network.nodes import Progression

_SCATTERED = 4
"""Run length of copies that are about as fast as a transposing one."""


@dataclass(frozen=True, slots=True)
class Residue:
    """The values of a free index that read at common values of the shared index.

    Member ``m`` reads ``position = offset + spacing * m + step * t`` at ``shared =
    residue + stride * t``.

    Args:
        members: Slice of the free index.
        flipped: Whether ``m`` is in reverse order of the slice.
        shared: Slice of the shared index.
        offset: Position of the first member at ``t = 0``.
        spacing: Distance between members.
        step: Distance between positions.
        count: Number of members.
        length: Number of values of ``t``.
    """

    members: slice
    flipped: bool
    shared: slice
    offset: int
    spacing: int
    step: int
    count: int
    length: int

    @property
    def reach(self) -> tuple[int, int]:
        """First and last position that is read."""
        last = self.offset + self.spacing * (self.count - 1)
        return self.offset, last + self.step * (self.length - 1)


@dataclass(frozen=True, slots=True)
class UnfoldedDim:
    """A pattern to unfold: the index that is read, and the two that replace it."""

    read: str
    free: str | None
    shared: str | None
    size: int
    residues: tuple[Residue, ...]

    @property
    def is_view(self) -> bool:
        """True if the result is a single strided view of the padded operand."""
        (first, *more) = self.residues or (None,)
        if first is None or more or first.flipped:
            return False
        return first.shared.start == 0 and first.shared.step == 1

    @property
    def padding(self) -> tuple[int, int]:
        """Number of zeros that are read to the left and right of the operand."""
        low = min((residue.reach[0] for residue in self.residues), default=0)
        high = max((residue.reach[1] for residue in self.residues), default=0)
        return max(-low, 0), max(high - self.size + 1, 0)


def unfolded_dim(
    pattern: Pattern, operand: Operand, sizes: Mapping[str, int]
) -> UnfoldedDim | None:
    """Read a pattern as an unfolding of an operand; None if it is not of that form."""
    read = tuple(index for index in pattern.indices if index in operand.indices)
    if len(read) != 1 or pattern.summed or len(pattern.indices) > 3:
        return None
    own = tuple((index, sizes[index]) for index in pattern.indices)
    return _unfolded_dim(pattern, read[0], own)


@lru_cache(maxsize=128)
def _unfolded_dim(
    pattern: Pattern, read: str, own: tuple[tuple[str, int], ...]
) -> UnfoldedDim | None:
    sizes = dict(own)
    others = [index for index in pattern.indices if index != read]
    if read == pattern.index:
        # either one could be shared; take the longer one
        others.sort(key=lambda index: sizes[index])
        shared = others[-1] if others else None
    else:
        others.remove(pattern.index)
        shared = pattern.index
    free = next((index for index in others if index != shared), None)
    if shared is None:
        return None
    progressions = pattern.progressions(read, shared, sizes)
    stride = 1 if read == pattern.index else pattern.position.stride(read)
    residues = _residues(progressions, stride, sizes[shared])
    return UnfoldedDim(read, free, shared, sizes[read], residues)


def unfolded_dims(
    patterns: Iterable[Pattern], operand: Operand, sizes: Mapping[str, int]
) -> list[UnfoldedDim] | None:
    """Read patterns as unfoldings of an operand; None unless all have that form."""
    dims = [unfolded_dim(pattern, operand, sizes) for pattern in patterns]
    found = [dim for dim in dims if dim is not None]
    return found if len(found) == len(dims) else None


def _residues(
    progressions: Sequence[Progression], stride: int, shared_size: int
) -> tuple[Residue, ...]:
    by_residue: dict[int, list[Progression]] = defaultdict(list)
    for progression in progressions:
        by_residue[progression.residue].append(progression)
    result = []
    for residue, members in sorted(by_residue.items()):
        length = -((residue - shared_size) // stride)
        if length < 1:
            continue
        spacings = [
            b.offset - a.offset for a, b in zip(members, members[1:], strict=False)
        ]
        spacing = spacings[0] if spacings else 1
        assert all(other == spacing for other in spacings)
        step = members[1].free - members[0].free if spacings else 1
        first, last = members[0], members[-1]
        result.append(
            Residue(
                slice(first.free, last.free + 1, step),
                spacing < 0,
                slice(residue, shared_size, stride),
                min(first.offset, last.offset),
                abs(spacing),
                first.step,
                len(members),
                length,
            )
        )
    return tuple(result)


class Unfolding:
    """A recipe for reading an operand through its patterns, with indices in order."""

    def __init__(
        self,
        operand: Operand,
        dims: Sequence[UnfoldedDim],
        order: Sequence[str],
        sizes: Mapping[str, int],
    ) -> None:
        self.operand, self.dims, self.sizes = operand, tuple(dims), dict(sizes)
        self.order = tuple(order)
        read = {dim.read for dim in self.dims}
        self.kept = tuple(j for j in operand.indices if j not in read)
        self.shape = tuple(sizes[index] for index in self.order)
        self.is_view = all(dim.is_view for dim in self.dims)
        self.padding = {
            len(self.kept) + number: dim.padding for number, dim in enumerate(self.dims)
        }
        padded = prod(dim.size + sum(dim.padding) for dim in self.dims) * prod(
            sizes[index] for index in self.kept
        )
        self.padded_elements = padded if any(map(any, self.padding.values())) else 0
        self.elements = prod(self.shape)
        self.run = self._run()
        self._places = (*self.kept, *(dim.read for dim in self.dims))
        self._view = View(operand, self._places, sizes)
        # by strides of the padded tensor, of which few occur
        self._parts: dict[
            tuple[int, ...], list[tuple[tuple[slice, ...], Layout, list[int]]]
        ] = {}

    def _run(self) -> int:
        """Estimate the contiguous run length of a copy, for a contiguous operand."""
        if not self.order or not self.operand.axes:
            return 1
        fastest = {*self.operand.axes[-1].position.indices}
        for dim in self.dims:
            if dim.read in fastest:
                fastest |= {j for j in (dim.free, dim.shared) if j is not None}
        return self.shape[-1] if self.order[-1] in fastest else _SCATTERED

    def is_free(self, lengths: Iterable[int]) -> bool:
        """Tell whether a contiguous operand with merged axes is read without a copy."""
        if not self.is_view or self.padded_elements:
            return False
        strides = contiguous_strides(self.operand.shape)
        base = layout(self.operand, self._places, self.sizes, strides)
        ((_, part, _),) = self._read(base.strides)
        return part.merges(lengths)

    def base(self, tensor: Tensor) -> Tensor:
        """Pad the operand, with the indices that are read last."""
        return pad(self._view(tensor), self.padding)

    def views(self, tensor: Tensor) -> Iterable[tuple[tuple[slice, ...], Tensor]]:
        """Yield slices of the result and the view of the operand that goes there."""
        base = self.base(tensor)
        parts = self._parts.get(base.stride())
        if parts is None:
            parts = self._parts[base.stride()] = list(self._read(base.stride()))
        for where, found, flips in parts:
            part = found.of(base)
            yield where, part.flip(flips) if flips else part

    def _read(
        self, base_strides: Sequence[int]
    ) -> Iterator[tuple[tuple[slice, ...], Layout, list[int]]]:
        """Yield for each view its slices of the result, layout, and axes to flip."""
        for choice in product(*(dim.residues for dim in self.dims)):
            where = dict.fromkeys(self.order, slice(None))
            strides = dict(zip(self.kept, base_strides, strict=False))
            sizes = {index: self.sizes[index] for index in self.kept}
            offset, flips = 0, []
            for axis, (dim, residue) in enumerate(
                zip(self.dims, choice, strict=True), start=len(self.kept)
            ):
                stride = base_strides[axis]
                offset += (residue.offset + dim.padding[0]) * stride
                assert dim.shared is not None
                strides[dim.shared], sizes[dim.shared] = (
                    residue.step * stride,
                    residue.length,
                )
                where[dim.shared] = residue.shared
                if dim.free is not None:
                    strides[dim.free], sizes[dim.free] = (
                        residue.spacing * stride,
                        residue.count,
                    )
                    where[dim.free] = residue.members
                    if residue.flipped:
                        flips.append(self.order.index(dim.free))
            shape = [sizes[index] for index in self.order]
            found = Layout(shape, [strides[index] for index in self.order], offset)
            yield tuple(where.values()), found, flips

    def tensor(self, tensor: Tensor) -> Tensor:
        """Unfold a tensor, as a view if possible."""
        if self.is_view:
            ((_, part),) = self.views(tensor)
            return part
        result = empty(self.shape, tensor)
        views = list(self.views(tensor))
        if sum(part.numel() for _, part in views) < self.elements:
            result.zero_()
        for where, part in views:
            result[where] = part
        return result


def unfolding(network: TensorNetwork) -> Unfolding | None:
    """Return the unfolding that a network describes; None if it describes none."""
    if len(network.operands) != 1 or network.pairs:
        return None
    (operand,) = network.operands
    found = unfolded_dims(network.patterns, operand, network.sizes)
    if found is None:
        return None
    kept = {*operand.indices} - {dim.read for dim in found}
    for dim in found:
        kept |= {index for index in (dim.free, dim.shared) if index is not None}
    if kept != set(network.output_indices):
        return None
    return Unfolding(operand, found, network.output_indices, network.sizes)


def unfold(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Read one operand through its patterns."""
    recipe = unfolding(network)
    if recipe is None:
        return
    name = recipe.operand.name

    def compute(tensors: Tensors) -> Tensor:
        return reshaped(recipe.tensor(tensors[name]), network.shape)

    def run(tensors: Tensors, into: Accumulator) -> None:
        into.put(into.out, compute(tensors))

    operations = []
    if recipe.padded_elements:
        sides = ", ".join(f"{low}+{high}" for low, high in recipe.padding.values())
        cost = target.rates.move(recipe.padded_elements, target.itemsize)
        operations.append(Operation(f"pad {name}", sides, cost))
    copied = 0 if recipe.is_free(map(len, network.output)) else recipe.elements
    cost = target.rates.move(copied, target.itemsize, recipe.run)
    shape = " x ".join(map(str, recipe.shape))
    verb = "unfold" if copied else "view"
    operations.append(Operation(f"{verb} {name}", shape, cost))
    held = recipe.padded_elements
    yield Candidate("unfold", tuple(operations), held, run, compute)
