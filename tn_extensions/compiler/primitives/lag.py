"""Lag: sum the products of an operand with its shifted copies, over windows.

A pair of kernel positions contributes the product of the operand with itself at a lag,
summed over a window. A kernel sums many lags at a time over a box. Strips, which boxes
leave at the borders, are gathered and multiplied. Sums over boxes and strips are added
up to sums over windows. Nothing is subtracted, so nothing cancels. Windows at negative
lags are transposes. The result copies each window to the pairs of kernel positions that
share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import accumulate
from math import ceil, prod

import numpy as np
import torch
from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.candidate import (
    MOST_CALLS,
    Candidate,
    Operation,
    Target,
    Tensors,
)
from tn_extensions.compiler.chunks import Chunks
from tn_extensions.compiler.constant import Constant
from tn_extensions.compiler.half import Half
from tn_extensions.compiler.lag_sums import Kernel, kernels, pieces
from tn_extensions.compiler.lags import Box, Integers, LagGrid, lag_dim, number_of_lags
from tn_extensions.compiler.primitives.unfold import Unfolding, unfolded_dims
from tn_extensions.compiler.product import multiply
from tn_extensions.network import TensorNetwork

_MOST_ADDITIONS = 2**22
"""Number of windows times segments above which lags do not pay."""


def lag(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Sum over lags along all paired dimensions, by each kernel."""
    half = Half.of(network)
    if half is None or 0 in half.sizes.values() or not half.has_lags:
        return
    if unfolded_dims(half.patterns, half.operand, half.sizes) is None:
        return
    if prod(len(dim.progressions) for dim in half.dims) ** 2 > MOST_CALLS:
        return
    dims = [lag_dim(dim.progressions, half.sizes[dim.read]) for dim in half.dims]
    if prod(len(dim.windows) * len(dim.segments) for dim in dims) > _MOST_ADDITIONS:
        return
    channels = prod(half.sizes[j] for j in half.unpaired_columns)
    grid = LagGrid(dims)
    # native kernels do not pay for unfolded channels
    for kernel in kernels(len(dims), channels, native=not half.patterns):
        yield LagSums(half, target, grid, kernel).candidate


class LagSums:
    """Evaluation of a half by sums over lags."""

    def __init__(
        self, half: Half, target: Target, grid: LagGrid, kernel: Kernel
    ) -> None:
        self.half, self.target, self.grid, self.kernel = half, target, grid, kernel
        sizes = half.sizes
        self.rows = prod(sizes[j] for j in half.rows)
        self.groups = prod(sizes[j] for j in half.batch)
        self.rest = [sizes[j] for j in half.unpaired_columns]
        self.channels = prod(self.rest)
        self.space = [
            dim.size + sum(pad)
            for dim, pad in zip(grid.dims, grid.padding, strict=True)
        ]
        # copies of a strip's operands that are held together
        self.gathered = 3 if self.channels > 1 else 2
        self.chunks = Chunks.along(half.nodes, sizes, half.rows)
        self.limit = target.budget // (2 * target.itemsize)
        # one more position, which is zero
        self.sample = (prod(self.space) + 1) * self.groups * self.channels
        total = self.chunks.total
        self.chunk = max(
            1, min(total, self.limit * total // (4 * self.rows * self.sample))
        )
        self.rows_of_chunk = self.rows * self.chunk // total
        self.pairs = prod(len(dim.progressions) for dim in half.dims) ** 2
        self.strips = list(self._strips())
        starts = accumulate((count for count, _, _ in self.strips), initial=0)
        self.positions = [
            Constant(partial(self._table, start, count, length))
            for start, (count, length, _) in zip(starts, self.strips, strict=False)
        ]
        self.places = Constant(lambda: np.concatenate([[0], grid.places]))
        self.additions = Constant(lambda: grid.additions)
        self.entries = Constant(lambda: grid.entries.ravel())

    @property
    def candidate(self) -> Candidate:
        """The candidate, with its operations and costs."""

        def run(tensors: Tensors, into: Accumulator) -> None:
            self.add(tensors[self.half.operand.name], into)

        operations = (*self._filling(), *self._adding())
        name = f"lag({self.kernel.name})"
        return Candidate(name, operations, max(self._held()), run)

    def _filling(self) -> Iterator[Operation]:
        """Yield the operations on each chunk."""
        rates, itemsize = self.target.rates, self.target.itemsize
        chunks, width = (
            ceil(self.chunks.total / self.chunk),
            self.groups * self.channels,
        )
        shape = [self.rows_of_chunk, *self.space, width]
        run = width if self.kernel.channels_last else self.space[-1]
        copied = rates.move(prod(shape), itemsize, run)
        yield Operation("pad and copy x", _text(shape), copied, chunks)
        for box in self.grid.boxes:
            parts = self._pieces(box, self.rows_of_chunk)
            rows, part = parts[0][0].stop, parts[0][1]
            sizes = (rows, self.groups, self.channels)
            cost = self.kernel.price(rates, itemsize, part, *sizes)
            sums = rates.move(width * self.channels * number_of_lags(box) / 2, itemsize)
            lags = _text(region.lags for region in box)
            shapes = f"{lags} lags of {rows} x {_text(r.count for r in part)}"
            yield Operation(self.kernel.name, shapes, cost + sums, chunks * len(parts))
        for count, length, block in self.strips:
            terms = self.rows_of_chunk * length
            cost = rates.move(self.gathered * terms * width * block, itemsize, width)
            if self.channels > 1:
                batch, side = block * self.groups, self.channels
                cost = cost + rates.product(side, side, terms, batch, itemsize)
            shapes = f"{count} strips of {self.rows_of_chunk} x {length}"
            yield Operation(
                "gather and multiply", shapes, cost, chunks * ceil(count / block)
            )

    def _adding(self) -> Iterator[Operation]:
        """Yield the operations that turn sums into the result."""
        rates, itemsize = self.target.rates, self.target.itemsize
        square = self.groups * self.channels**2
        touched, strips = self.grid.number_of_additions
        sums, windows = (
            self.grid.number_of_sums + strips,
            self.grid.number_of_windows + 1,
        )
        cost = rates.move((sums + windows) * square, itemsize) + rates.overhead(4)
        if strips:
            cost = cost + rates.product(touched, square, strips, itemsize=itemsize)
        yield Operation("add up windows", f"{sums} to {windows}", cost)
        blocks = len(list(self._blocks()))
        written = self.pairs * square / blocks
        cost = rates.move(2 * windows * square / blocks + written, itemsize)
        cost = cost + rates.move(written, itemsize, run=4)
        shapes = f"{windows} to {self.pairs} pairs of kernel positions"
        yield Operation("copy windows", shapes, cost, blocks)

    def _held(self) -> Iterator[int]:
        """Yield the elements held in each phase: summing, adding up, copying."""
        width = self.groups * self.channels
        square = width * self.channels
        working = [0]
        for box in self.grid.boxes:
            rows, part = self._pieces(box, self.rows_of_chunk)[0]
            unfolded = number_of_lags(box) if self.kernel.unfolds else 0
            read = rows.stop * prod(region.count for region in part) * width
            working.append(number_of_lags(box) * square + read * (1 + unfolded))
        working += [
            self.gathered * self.rows_of_chunk * length * width * block
            for _, length, block in self.strips
        ]
        _, strips = self.grid.number_of_additions
        sums = (self.grid.number_of_sums + strips) * square
        windows = (self.grid.number_of_windows + 1) * square
        # native kernels copy both operands
        copies = 1 if self.kernel.unfolds else 3
        yield copies * self.rows_of_chunk * self.sample + max(working) + sums
        yield sums + 2 * windows
        blocks = len(list(self._blocks()))
        yield windows + (4 * windows + self.pairs * square) // blocks

    def _pieces(self, box: Box, rows: int) -> list[tuple[slice, Box]]:
        if self.channels == 1 and not self.kernel.unfolds:
            # this kernel treats rows as channels
            parts = pieces(box, 1, self.kernel.terms, self.kernel.lines)
            return [(slice(rows), part) for _, part in parts]
        terms = self.kernel.terms
        if self.kernel.unfolds:
            one = self.groups * self.channels * (number_of_lags(box) + 1)
            terms = max(1, self.limit // one)
        return pieces(box, rows, terms, self.kernel.lines)

    def _strips(self) -> Iterator[tuple[int, int, int]]:
        """Yield groups of similar strips: number, length, and number per block."""
        sizes = self.grid.sizes_of_strips
        # strips are padded to one of two lengths, with the least padding in total
        costs = [
            number * sizes[0] + (len(sizes) - number) * size
            for number, size in enumerate(sizes)
        ]
        cut = costs.index(min(costs)) if costs else 0
        for part in (sizes[:cut], sizes[cut:]):
            if part:
                one = self.gathered * self.rows_of_chunk * part[0]
                one *= self.groups * self.channels
                yield len(part), part[0], max(1, min(len(part), self.limit // one))

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yield blocks of the result: slices of groups and of the first column."""
        whole = self.rest[0] if self.rest else 1
        count = self.groups if self.groups > 1 else whole
        written = self.pairs * self.groups * self.channels**2 * self.target.itemsize
        cached = min(self.target.rates.cache, self.target.budget / 4)
        size = ceil(count / min(count, ceil(written / cached)))
        for start in range(0, count, size):
            block = slice(start, start + size)
            yield (block, slice(0, whole)) if self.groups > 1 else (slice(0, 1), block)

    def add(self, tensor: Tensor, into: Accumulator) -> None:
        """Add the result for a tensor to an accumulator."""
        windows = self._windows(tensor)
        entries = self.entries.like(windows, torch.int64)
        inner = prod(self.rest[1:])
        positions = [len(dim.progressions) for dim in self.half.dims]
        target = self._view(into.out)
        rank, count = len(self.rest), len(positions)
        rest, free = range(1, rank + 1), range(rank + 1, rank + 1 + 2 * count)
        copies = range(rank + 1 + 2 * count, 2 * rank + 1 + 2 * count)
        for group, first in self._blocks():
            channels = slice(first.start * inner, first.stop * inner)
            own = windows[group, channels]
            mirrored = windows[group, ..., channels].permute(0, 3, 2, 1)
            both = torch.cat([own, mirrored], dim=2).index_select(2, entries)
            part = target[group] if not self.rest else target[group, first]
            value = both.view(
                len(both), *part.shape[1 : rank + 1], *positions, *positions, *self.rest
            )
            into.put(part, value.permute(0, *rest, *copies, *free))

    def _view(self, out: Tensor) -> Tensor:
        """View the result as ``[G, rest..., rest'..., k1, k2, ..., k1', k2', ...]``."""
        half = self.half
        sizes = [half.sizes[j] for j in half.columns]
        split = out.view(self.groups, *sizes, *sizes)
        rest = [half.columns.index(j) + 1 for j in half.unpaired_columns]
        free = [half.columns.index(str(dim.free)) + 1 for dim in half.dims]
        copies = [[axis + len(sizes) for axis in axes] for axes in (rest, free)]
        return split.permute(0, *rest, *copies[0], *free, *copies[1])

    def _windows(self, tensor: Tensor) -> Tensor:
        """Compute the sums over windows, after a zero: ``[G, C, windows, C']``."""
        sums, strips = self._sums(tensor)
        zero = tensor.new_zeros(self.groups * self.channels, 1, self.channels)
        found = torch.cat([zero, *sums], dim=1)
        del sums
        windows = found.index_select(1, self.places.like(tensor, torch.int64))
        del found
        if strips is not None:
            added = self.additions.like(tensor) @ strips.flatten(1)
            added = added.view(len(added), *zero.shape[::2]).transpose(0, 1)
            windows[:, 1 : added.shape[1] + 1] += added
        return windows.unflatten(0, (self.groups, self.channels))

    def _sums(self, tensor: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Compute the sums over boxes, and over strips ``[strips, G * C, C']``."""
        sums: list[Tensor | None] = [None] * len(self.grid.boxes)
        strips: Tensor | None = None
        width = self.groups * self.channels
        for flat in self._chunks(tensor):
            padded = flat[:, :-1].unflatten(1, self.space)
            for number, box in enumerate(self.grid.boxes):
                for rows, part in self._pieces(box, len(flat)):
                    own, read = self._cut(padded[rows], part)
                    value = self.kernel.sums(own, read, part, self.groups)
                    total = sums[number]
                    sums[number] = value if total is None else total.add_(value)
            if self.strips:
                found = torch.cat(list(self._multiplied(flat)))
                found = found.view(-1, width, self.channels)
                strips = found if strips is None else strips.add_(found)
        return [total for total in sums if total is not None], strips

    def _multiplied(self, flat: Tensor) -> Iterator[Tensor]:
        """Yield the sums over strips, block by block."""
        for table, block in self._tables(flat):
            for first, second in zip(
                *(side.split(block) for side in table), strict=True
            ):
                left, right = (self._gather(flat, side) for side in (first, second))
                if self.channels == 1:
                    yield left.mul_(right).sum((0, 2))
                else:
                    yield multiply(left, right)

    def _tables(self, like: Tensor) -> Iterator[tuple[tuple[Tensor, Tensor], int]]:
        """Yield the positions of groups of strips, and the number per block."""
        for table, (_, _, block) in zip(self.positions, self.strips, strict=True):
            first, second = table.like(like, torch.int64)
            yield (first, second), block

    def _table(self, start: int, count: int, length: int) -> Integers:
        """Return the flat positions of a group of strips, ``[2, strips, length]``."""
        result = np.full((2, count, length), prod(self.space))
        for number in range(count):
            for side, found in zip(
                result, self.grid.strip(start + number), strict=True
            ):
                side[number, : len(found)] = found
        return result

    def _gather(self, flat: Tensor, positions: Tensor) -> Tensor:
        """Read strips, as matrices ``[strips * G, C, terms]`` unless ``C = 1``."""
        found = flat.index_select(1, positions.flatten()).unflatten(1, positions.shape)
        if self.channels == 1:
            return found
        terms = len(flat) * positions.shape[1]
        found = found.unflatten(3, (self.groups, -1)).permute(1, 3, 0, 2, 4)
        return found.contiguous().view(-1, terms, self.channels).mT

    def _chunks(self, tensor: Tensor) -> Iterator[Tensor]:
        """Yield padded chunks with a zero, ``[rows, positions + 1, G * channels]``."""
        half, width = self.half, self.groups * self.channels
        inner = [
            slice(low, low + half.sizes[dim.read])
            for dim, (low, _) in zip(half.dims, self.grid.padding, strict=True)
        ]
        name = half.operand.name
        for count, parts in self.chunks.split({name: tensor}, self.chunk):
            unfolded = self._unfolding(count).tensor(parts[name])
            rows = count * self.rows // self.chunks.total
            shape = [rows, prod(self.space) + 1, width]
            if self.kernel.channels_last:
                flat = tensor.new_zeros(shape)
            else:
                flat = tensor.new_zeros(rows, width, shape[1]).mT
            padded = flat[:, :-1].unflatten(1, self.space)
            target = padded[(slice(None), *inner)]
            target.copy_(unfolded.reshape(target.shape))
            yield flat

    def _unfolding(self, count: int) -> Unfolding:
        """Return the unfolding of a chunk, ``[rows, space..., G, channels]``."""
        half = self.half
        sizes = {**half.sizes, self.chunks.index: count}
        found = unfolded_dims(half.patterns, half.operand, sizes)
        assert found is not None
        reads = (dim.read for dim in half.dims)
        order = (*half.rows, *reads, *half.batch, *half.unpaired_columns)
        return Unfolding(half.operand, found, order, sizes)

    def _cut(self, padded: Tensor, box: Box) -> tuple[Tensor, Tensor]:
        """Cut out the positions of a box, and those that its lags lead to."""
        own: list[slice] = [slice(None)]
        read: list[slice] = [slice(None)]
        for region, (low, _) in zip(box, self.grid.padding, strict=True):
            stop = region.own.stop + low
            own.append(slice(region.own.start + low, stop, region.step))
            read.append(slice(region.read.start + low, region.read.stop + low))
        return padded[tuple(own)], padded[tuple(read)]


def _text(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))
