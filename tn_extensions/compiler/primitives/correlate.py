"""Pair over several dimensions: all lags at once by torch's native weight gradient.

The lag sums of an input with itself are the weight gradient of a convolution of that
input whose output gradient is the input again, with a kernel as wide as there are lags.
One half of the lags mirrors the other. Where the windows of the kernel positions
differ, their ends cut them into segments; the sums over boxes of segments are added,
never subtracted, so that nothing cancels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil, prod
from typing import NamedTuple

from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.boxes import CALLS, BoxGrid, Key, number_of_sums, padding
from tn_extensions.compiler.candidate import (
    MOST_CALLS,
    Candidate,
    Target,
    Tensors,
    priced,
)
from tn_extensions.compiler.chunks import Chunks
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.half import Half
from tn_extensions.compiler.lag_sums import is_thin, pieces, sum_box
from tn_extensions.compiler.lags import Member, Region, positive_lags
from tn_extensions.compiler.native import MOST_DIMS
from tn_extensions.compiler.primitives.unfold import Unfolding, unfolded_dims
from tn_extensions.compiler.strided import select
from tn_extensions.network import TensorNetwork

_BLOCK_BYTES = 24 * 2**20
"""Lag sums that are held at a time, so that they stay in the cache."""

_CHUNK_BYTES = 4 * 2**20
"""Copies of the operand that are held at a time, likewise."""

_VECTOR, _FEW, _UNALIGNED = 16, 4, 3
"""Channels that the native kernel works on at a time, and below which it is depthwise.

Groups that are no multiple of a vector take so many times as long as they would alone.
"""


def correlate(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Correlate the half with itself along all joined dimensions."""
    half = Half.of(network)
    if half is None or 0 in half.sizes.values():
        return
    if not half.has_lags or len(half.dims) > MOST_DIMS:
        return
    if unfolded_dims(half.patterns, half.operand, half.sizes) is None:
        return
    # each pair of kernel positions is written on its own
    if prod(len(dim.progressions) for dim in half.dims) ** 2 > MOST_CALLS:
        return
    work = Correlation(half, target)
    boxes = sum(grid.size for grid in work.grids)
    if CALLS * boxes > MOST_CALLS:
        return

    def run(tensors: Tensors, into: Accumulator) -> None:
        work.add(tensors[half.operand.name], into)

    chunks = ceil(work.total / work.chunk)
    steps = (
        f"in {chunks} chunk(s) of {work.chunk}: copy x to {work.shape}, channels last",
        f"{boxes} boxes, half of the lags, by native "
        f"weight gradients (borders by products), in blocks of {work.block} rows",
        "add up the boxes of each kernel position, scatter lags to kernel positions",
    )
    yield priced("correlate", steps, work.cost(), run)


class Correlation:
    """Lag sums of a half with itself along all of its joined dimensions."""

    def __init__(self, half: Half, target: Target) -> None:
        self.half, self.target = half, target
        sizes = half.sizes
        self.rows = prod(sizes[j] for j in half.rows)
        self.groups = prod(sizes[j] for j in half.batch)
        self.channels = prod(sizes[j] for j in half.unpaired_columns)
        dims = [(dim.progressions, sizes[dim.read]) for dim in half.dims]
        split, merged = (
            [BoxGrid(groups) for groups in positive_lags(dims, split)]
            for split in (True, False)
        )
        # lags apart pay where the windows of all kernel positions coincide
        self.grids = min(split, merged, key=number_of_sums)
        self.padding = [
            padding((r for g in self.grids for r in g.regions[axis]), sizes[dim.read])
            for axis, dim in enumerate(half.dims)
        ]
        # whether every entry of the result is written
        self.covers = all(
            len({value.residue for value in dim.progressions}) == 1
            and all(value.begin < value.end for value in dim.progressions)
            for dim in half.dims
        )
        self.chunks = Chunks.along(half.nodes, sizes, half.rows)
        self.total = self.chunks.total
        space = [sizes[dim.read] for dim in half.dims]
        padded = [n + sum(pad) for n, pad in zip(space, self.padding, strict=True)]
        self.shape = [self.rows, *padded, self.groups * self.channels]
        limit = min(_CHUNK_BYTES, target.budget // 4) // target.itemsize
        self.chunk = max(1, min(self.total, limit * self.total // prod(self.shape)))
        self.shape[0] = self.chunk * self.rows // self.total
        counts = {self.chunk, self.total % self.chunk} - {0}
        self.unfoldings = {count: self._unfolding(count) for count in counts}
        # blocks of groups where there are several, else of output channels
        self.blocked = self.groups
        if self.groups == 1 and len(half.unpaired_columns) == 1:
            self.blocked = self.channels
        lags = max(map(_most_lags, self.grids), default=0)
        # sums over boxes, those of one box anew, and half of the pairs of positions
        positions = prod(len(dim.progressions) for dim in half.dims)
        held = number_of_sums(self.grids) + 2 * lags + positions**2 // 2
        one = self.groups * self.channels**2 * held / self.blocked
        limit = min(_BLOCK_BYTES, target.budget // 2) // target.itemsize
        wanted = min(self.blocked, max(16, int(limit / max(one, 1))))
        self.block = ceil(self.blocked / ceil(self.blocked / wanted))
        # copies of large boxes, or borders with their lags unfolded
        unfolded = max(map(_most_unfolded, self.grids), default=0)
        unfolded *= self.shape[0] * self.shape[-1]
        self.held = ceil(one * self.block)
        self.held += prod(self.shape) + max(2 * prod(self.shape), unfolded)

    def cost(self) -> Cost:
        """Estimate."""
        rates, itemsize = self.target.rates, self.target.itemsize
        chunks = ceil(self.total / self.chunk)
        blocks = ceil(self.blocked / self.block)
        repeats = blocks * chunks
        total = rates.move(prod(self.shape), itemsize, 16).times(repeats)
        pairs = self.groups * self.channels**2
        for grid in self.grids:
            for box in grid.boxes.values():
                calls = repeats
                if not is_thin(box):
                    calls *= len(pieces(box, self.shape[0]))
                one = self._cost_of_box(box, repeats)
                sums = prod(region.lags for region in box) * pairs / blocks
                added = rates.move(sums, itemsize).times(calls)
                total = total + one + added
                total = total + Cost(seconds=CALLS * rates.call * calls)
        # each pair of kernel positions is added up and written on its own
        positions = prod(len(dim.progressions) for dim in self.half.dims)
        added = rates.move(pairs * number_of_sums(self.grids), itemsize).times(2)
        written = rates.move(pairs * positions**2, itemsize, 8)
        overhead = Cost(seconds=positions**2 * blocks * rates.call)
        return (total + added + written + overhead).holding(self.held)

    def _cost_of_box(self, box: Sequence[Region], repeats: int) -> Cost:
        rates, itemsize = self.target.rates, self.target.itemsize
        lags = prod(region.lags for region in box)
        terms = self.rows * prod(region.count for region in box)
        if is_thin(box):
            groups = self.block if self.groups > 1 else 1
            rows = self.channels if self.groups > 1 else self.block
            rows = self.channels if self.blocked == 1 else rows
            terms = ceil(terms * self.chunk / self.total)
            columns = self.channels * lags
            unfolded = rates.move(columns * groups * terms, itemsize)
            one = rates.product(rows, columns, terms, groups, itemsize)
            return (unfolded + one).times(repeats)
        depthwise = self.channels < _FEW
        filled = self.channels / (_VECTOR * ceil(self.channels / _VECTOR))
        rate = rates.correlate_depthwise if depthwise else rates.correlate * filled
        if self.groups > 1 and not depthwise and filled < 1:
            rate /= _UNALIGNED
        flops = float(self.groups * self.channels**2) * lags * terms
        return Cost(flops, 0, repeats, 0, flops / rate)

    def add(self, tensor: Tensor, into: Accumulator) -> None:
        """Add all lag sums of a tensor to the accumulator."""
        view = self._view(into.out)
        if into.fresh and not self.covers:
            into.out.zero_()
            into.fresh = False
        for start in range(0, self.blocked, self.block):
            stop = min(start + self.block, self.blocked)
            sums = self._sums(tensor, start, stop)
            entries = [
                entry
                for grid, found in zip(self.grids, sums, strict=True)
                for entry in _entries(grid, found)
            ]
            # what lies close together is written together
            for entry in sorted(entries, key=lambda entry: entry[:2]):
                target = select(view, (*entry.row, *entry.column))
                if self.blocked > 1:
                    axis = 0 if self.groups > 1 else 1 + entry.exchanged
                    target = target.narrow(axis, start, stop - start)
                into.put(target, entry.value.reshape(target.shape))

    def _sums(self, tensor: Tensor, start: int, stop: int) -> list[dict[Key, Tensor]]:
        """Sums over all boxes, for a block of the rows of the result."""
        result: list[dict[Key, Tensor]] = [{} for _ in self.grids]
        right = slice(0, self.groups * self.channels)
        left, groups = right, self.groups
        if self.groups > 1:
            left = right = slice(start * self.channels, stop * self.channels)
            groups = stop - start
        elif self.blocked > 1:
            left = slice(start, stop)
        for padded in self._chunks(tensor):
            for grid, sums in zip(self.grids, result, strict=True):
                for key, box in grid.boxes.items():
                    thin = is_thin(box)
                    parts = [(slice(None), box)] if thin else pieces(box, len(padded))
                    for rows, part in parts:
                        own, read = self._cut(padded[rows], part)
                        value = sum_box(
                            own[..., left], read[..., right], part, groups, thin
                        )
                        sums[key] = sums[key].add_(value) if key in sums else value
        return result

    def _chunks(self, tensor: Tensor) -> Iterator[Tensor]:
        """The padded operand, ``[rows, space..., G * channels]``, chunk by chunk."""
        half = self.half
        buffer = tensor.new_zeros(self.shape)
        inner: list[slice] = [
            slice(low, low + half.sizes[dim.read])
            for dim, (low, _) in zip(half.dims, self.padding, strict=True)
        ]
        name = half.operand.name
        for count, parts in self.chunks.split({name: tensor}, self.chunk):
            unfolded = self.unfoldings[count].tensor(parts[name])
            padded = buffer[: count * self.rows // self.total]
            target = padded[(slice(None), *inner)]
            target.copy_(unfolded.reshape(target.shape))
            yield padded

    def _unfolding(self, count: int) -> Unfolding:
        """How to read a chunk, ``[rows, space..., G, channels]``."""
        half = self.half
        sizes = {**half.sizes, self.chunks.index: count}
        found = unfolded_dims(half.patterns, half.operand, sizes)
        assert found is not None
        reads = (dim.read for dim in half.dims)
        order = (*half.rows, *reads, *half.batch, *half.unpaired_columns)
        return Unfolding(half.operand, found, order, sizes)

    def _cut(self, padded: Tensor, box: Sequence[Region]) -> tuple[Tensor, Tensor]:
        """The positions of a box, and all that their lags lead to."""
        own: list[slice] = [slice(None)]
        read: list[slice] = [slice(None)]
        for region, (low, _) in zip(box, self.padding, strict=True):
            stop = region.own.stop + low
            own.append(slice(region.own.start + low, stop, region.step))
            read.append(slice(region.read.start + low, region.read.stop + low))
        return padded[tuple(own)], padded[tuple(read)]

    def _view(self, out: Tensor) -> Tensor:
        """The result as ``[G, rest..., rest'..., k1, k2, ..., k1', k2', ...]``."""
        half = self.half
        sizes = [half.sizes[j] for j in half.columns]
        split = out.view(self.groups, *sizes, *sizes)
        rest = [half.columns.index(j) + 1 for j in half.unpaired_columns]
        free = [half.columns.index(str(dim.free)) + 1 for dim in half.dims]
        copies = [[axis + len(sizes) for axis in axes] for axes in (rest, free)]
        return split.permute(0, *rest, *copies[0], *free, *copies[1])


def _most_lags(grid: BoxGrid) -> int:
    """Lags of the box that has most of them."""
    return prod(
        max((region.lags for region in regions), default=0) for regions in grid.regions
    )


def _most_unfolded(grid: BoxGrid) -> int:
    """Entries of the border that has most of them once its lags are unfolded.

    A box is a border by one of its dimensions, whatever the others are.
    """
    most = 0
    for axis, regions in enumerate(grid.regions):
        thin = [region for region in regions if is_thin([region])]
        found = [*grid.regions[:axis], thin, *grid.regions[axis + 1 :]]
        sizes = (max((r.lags * r.count for r in own), default=0) for own in found)
        most = max(most, prod(sizes))
    return most


class Entry(NamedTuple):
    """What the result holds at two kernel positions.

    Args:
        row: Kernel position of the rows.
        column: Kernel position of the columns.
        exchanged: Whether the value is a mirror image.
        value: Channels by channels, for each group.
    """

    row: Key
    column: Key
    exchanged: bool
    value: Tensor


def _entries(grid: BoxGrid, sums: Mapping[Key, Tensor]) -> Iterator[Entry]:
    """Each pair of kernel positions, from sums ``[G, rows, rows', lags...]`` by box."""
    for members, value in _add_segments(grid, sums, ()):
        for pair in grid.pairs(members):
            found = select(value, pair.lag)
            yield Entry(pair.row, pair.column, False, found)
            if pair.mirrored:
                yield Entry(pair.column, pair.row, True, found.mT)


def _add_segments(
    grid: BoxGrid, sums: Mapping[Key, Tensor], chosen: tuple[Member, ...]
) -> Iterator[tuple[tuple[Member, ...], Tensor]]:
    """Sums of each combination of members, at the lags from its first to its last.

    Of the boxes, those dimensions are left over for which no member was chosen.
    """
    axis = len(chosen)
    if axis == len(grid.groups):
        yield chosen, sums[()]
        return
    for member in grid.groups[axis].members:
        parts: dict[Key, Tensor] = {}
        for (segment, *rest), value in sums.items():
            if member in grid.segments[axis][segment].members:
                lags = grid.regions[axis][segment].within(member)
                part = value[(*(slice(None),) * (3 + axis), lags)]
                key = tuple(rest)
                parts[key] = parts[key] + part if key in parts else part
        yield from _add_segments(grid, parts, (*chosen, member))
