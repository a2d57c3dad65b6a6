"""Pair over one dimension: a matrix product per lag, the other dimensions unfolded.

Dimensions whose patterns are paired as well are kept as they are in the product and
contracted afterwards, which pays for depthwise convolutions. Windows of one lag share a
common interior; borders are added to it, never subtracted from a larger sum, so that
nothing cancels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, partial
from math import ceil, prod

import torch
from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.candidate import (
    MOST_CALLS,
    Candidate,
    Target,
    Tensors,
    priced,
)
from tn_extensions.compiler.chunks import Chunks
from tn_extensions.compiler.constant import Constant
from tn_extensions.compiler.cost import PIECE, Cost
from tn_extensions.compiler.half import Half, PairedDim
from tn_extensions.compiler.lags import LagClass, Window, lag_classes
from tn_extensions.compiler.primitives.unfold import Unfolding, unfolded_dims
from tn_extensions.compiler.product import WORTH_COPYING, multiply
from tn_extensions.network import TensorNetwork
from tn_extensions.network.index import letters, prime


def lag(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Pair each of the joined dimensions in turn."""
    half = Half.of(network)
    if half is None or 0 in half.sizes.values():
        return
    for dim in half.dims:
        # each pair of kernel positions is written on its own
        few = len(dim.progressions) ** 2 <= 2 * MOST_CALLS
        if dim.free is not None and dim.progressions and few:
            candidate = _candidate(network, half, dim, target)
            if candidate is not None:
                yield candidate


def _candidate(
    network: TensorNetwork, half: Half, dim: PairedDim, target: Target
) -> Candidate | None:
    products = LagProducts.of(half, dim)
    if products is None:
        return None
    # where there are groups, what is worked on at a time should stay in the cache
    limit = target.budget // (2 * target.itemsize)
    limit = min(limit, _CACHED_ELEMENTS) if products.groups > 1 else limit
    chunks = Chunks.along(half.nodes, half.sizes, half.batch, kept=True)
    if products.groups == 1 or products.held > limit * chunks.total:
        chunks = Chunks.along(half.nodes, half.sizes, half.rows)
    total = chunks.total
    size = max(1, min(total, limit * total // products.held))
    if products.in_pieces and products.width < 2 * WORTH_COPYING:
        # too narrow to copy: rows are to fit into one piece
        size = max(1, min(size, PIECE * total // products.rows))

    @cache
    def of(count: int) -> LagProducts:
        if count == total:
            return products
        smaller = Half.of(chunks.network(network, count))
        assert smaller is not None
        (chunk_dim,) = (other for other in smaller.dims if other.read == dim.read)
        part = LagProducts.of(smaller, chunk_dim)
        assert part is not None
        return part

    def run(tensors: Tensors, into: Accumulator) -> None:
        pieces = chunks.split(tensors, size)
        for (count, piece), out in zip(pieces, chunks.targets(into, size), strict=True):
            of(count).add(piece[half.operand.name], out)

    number = ceil(total / size)
    cost = of(size).cost(target).times(number).holding(of(size).held)
    steps = [f"in {number} chunks of {size} {chunks.index}:"] if number > 1 else []
    kind = "lag, rest kept" if len(half.dims) > 1 else "lag"
    return priced(kind, (*steps, *of(size).steps), cost, run)


_BLOCK_ELEMENTS = 2**19
"""Elements of a product that are held at a time, so that they stay in the cache."""


_CACHED_ELEMENTS = 3 * 2**18
"""Elements that are held at a time where there are groups."""

_WIDE = 128
"""Columns from which on products are worked on in pieces of few positions."""


class LagProducts:
    """The products of a half with its shifted copy along one dimension."""

    def __init__(self, half: Half, dim: PairedDim, unfolding: Unfolding) -> None:
        self.half, self.dim, self.unfolding = half, dim, unfolding
        self.classes = lag_classes(dim.progressions)
        self.step = dim.progressions[0].step
        sizes = half.sizes
        self.groups = prod(sizes[j] for j in half.batch)
        self.rows = prod(sizes[j] for j in half.rows)
        self.width = prod(unfolding.shape) // (
            self.groups * self.rows * sizes[dim.read]
        )
        self.kept = tuple(other for other in half.dims if other is not dim)
        self.rest = tuple(j for j in half.columns if j != dim.free)
        # wide products want contiguous operands that are short enough to sum
        self.in_pieces = self.groups == 1 and self.width >= _WIDE
        self.piece = max(1, PIECE // self.rows) if self.in_pieces else sizes[dim.read]
        # without groups, rows of the products are worked on in blocks
        self.blocked = 1
        if (
            self.groups == 1
            and self.rest
            and self.rest[0] not in {other.free for other in self.kept}
        ):
            self.blocked = sizes[self.rest[0]]
        wanted = max(1, _BLOCK_ELEMENTS * self.blocked // (self.groups * self.width**2))
        self.block = ceil(self.blocked / ceil(self.blocked / min(wanted, self.blocked)))
        self.held = prod(unfolding.shape) + unfolding.padded_elements
        self.held += 4 * self.groups * self.width**2 * self.block // self.blocked
        self._contraction, self._constants = self._keep()

    @classmethod
    def of(cls, half: Half, dim: PairedDim) -> LagProducts | None:
        """Products along a paired dimension of a half; None if it cannot be read."""
        found = unfolded_dims(half.patterns, half.operand, half.sizes)
        if found is None:
            return None
        kept = {other.free: other.read for other in half.dims if other is not dim}
        if None in kept:
            return None
        columns = (kept.get(j, j) for j in half.columns if j != dim.free)
        order = (*half.batch, *columns, dim.read, *half.rows)
        return cls(half, dim, Unfolding(half.operand, found, order, half.sizes))

    @property
    def steps(self) -> tuple[str, ...]:
        """What is done, a line each."""
        phases = f" in {self.step} phases" if self.step > 1 else ""
        lines = [
            f"copy x to [{self.groups} x] {self.width} x {self.dim.read}{phases} x "
            f"{self.rows}",
            f"{len(self.classes)} lags of {self.dim.pair.shared}, a product each "
            "and one for each border",
        ]
        lines += [f"contract {d.read} with its dense pair" for d in self.kept]
        return tuple(lines)

    def cost(self, target: Target) -> Cost:
        """Estimate."""
        rates, itemsize = target.rates, target.itemsize
        sizes = self.half.sizes
        # kept positions come before the rows, against their order in memory
        run = 1.0
        if self.half.rows and not self.kept:
            run = sizes[self.half.rows[-1]]
        if self.dim.read in self.half.operand.axes[-1].position.indices:
            run = min(run, 8) if not self.kept else 0.5
        elif self.step > 1:
            run = min(run, 12)
        total = rates.move(prod(self.unfolding.shape), itemsize, run)
        if self.unfolding.padded_elements:
            total = total + rates.move(self.unfolding.padded_elements, itemsize)
        columns = prod(sizes[j] for j in self.half.columns)
        result = prod(sizes[j] for j in self.rest)
        lengths = Counter(j for group in self.classes for j in _lengths(group))
        for length, number in lengths.items():
            # operands are sliced, a result is added to its interior
            one = Cost(seconds=3 * rates.call)
            one = one + rates.product(
                self.width, self.width, length * self.rows, self.groups, itemsize
            )
            if self.kept:
                one = one + rates.product(
                    self.groups
                    * self.width**2
                    // prod(sizes[d.read] ** 2 for d in self.kept),
                    prod(sizes[str(d.free)] ** 2 for d in self.kept),
                    prod(sizes[d.read] ** 2 for d in self.kept),
                    itemsize=itemsize,
                )
                copied = rates.move(self.groups * self.width**2, itemsize, 8)
                one = one + copied + Cost(calls=6, seconds=6 * rates.call)
            total = total + one.times(number)
        blocks = sum(len(group.windows) for group in self.classes)
        # at the last kernel position, entries of a block are evenly spaced
        last = self.half.columns[-1] == self.dim.free
        spaced = 4 if last and self.groups == 1 else 1
        writes = rates.move(self.groups * columns**2, itemsize, spaced)
        overhead = rates.move(self.groups * result**2, itemsize).times(blocks)
        return total + writes + overhead

    def _keep(self) -> tuple[str, tuple[Constant, ...]]:
        """Einsum that contracts a product with the pairs that were kept."""
        half = self.half
        reads = {other.free: other.read for other in self.kept}
        left = [*half.batch, *(reads.get(j, j) for j in self.rest)]
        copies = [prime(reads.get(j, j)) for j in self.rest]
        wanted = [*half.batch, *self.rest, *map(prime, self.rest)]
        terms = [[*left, *copies], *(other.pair.indices for other in self.kept)]
        symbol = letters([j for term in terms for j in term] + wanted)
        text = ",".join("".join(symbol[j] for j in term) for term in terms)
        constants = (Constant(partial(d.pair.dense, half.sizes)) for d in self.kept)
        return f"{text}->{''.join(symbol[j] for j in wanted)}", tuple(constants)

    def add(self, tensor: Tensor, into: Accumulator) -> None:
        """Add all products of a tensor to the accumulator."""
        half, dim = self.half, self.dim
        phases = self._phases(self.unfolding.tensor(tensor))
        batch = [half.sizes[j] for j in half.batch] or [1]
        columns = [half.sizes[j] for j in half.columns]
        assert dim.free is not None
        place = len(batch) + half.columns.index(dim.free)
        views = [
            out.view(*batch, *columns, *columns).movedim(
                (place, place + len(columns)), (0, 1)
            )
            for out in (into.out, into.out.mT)
        ]
        if into.fresh:
            self._clear(views)
        for start in range(0, self.blocked, self.block):
            block = slice(start, min(start + self.block, self.blocked))
            # a block of channels is a block of rows: channels come first
            rows = self.width // self.blocked
            own = slice(block.start * rows, block.stop * rows)
            left = [part[:, own] for part in phases]
            parts = views
            if self.blocked > 1:
                axis = 2 + len(batch)
                length = block.stop - block.start
                parts = [view.narrow(axis, block.start, length) for view in views]
            for group in self.classes:
                for window, value in self._values(group, left, phases):
                    where = (window.first, window.second)
                    value = value.reshape(parts[0][where].shape)
                    for part in parts[: 1 + (window.first != window.second)]:
                        into.put(part[where], value)

    def _clear(self, views: Sequence[Tensor]) -> None:
        """Zero the blocks of pairs that have nothing in common."""
        met = {(w.first, w.second) for group in self.classes for w in group.windows}
        for first in range(len(self.dim.progressions)):
            for second in range(first, len(self.dim.progressions)):
                if (first, second) not in met:
                    for view in views:
                        view[first, second].zero_()

    def _phases(self, unfolded: Tensor) -> list[Tensor]:
        """The operand at each phase, ``[G, width, u, rows]``, laid out to multiply."""
        first = len(self.half.batch)
        axis = unfolded.dim() - 1 - len(self.half.rows)
        phases = []
        for phase in range(min(self.step, unfolded.shape[axis])):
            part = unfolded[(slice(None),) * axis + (slice(phase, None, self.step),)]
            length = part.shape[axis]
            columns = tuple(range(first, axis))
            rows = tuple(range(axis + 1, part.dim()))
            lead = tuple(range(first))
            if self.in_pieces:  # contiguous at each u
                part = part.permute(axis, *lead, *columns, *rows)
                part = part.reshape(length, self.groups, self.width, self.rows)
                part = part.permute(1, 2, 0, 3)
            else:
                part = part.reshape(self.groups, self.width, length, self.rows)
            phases.append(part)
        return phases

    @staticmethod
    def _piece(phase: Tensor, begin: int, end: int) -> Tensor:
        """Positions of a phase as matrices ``[G, width, terms]``."""
        return phase[:, :, begin:end].flatten(2)

    def _values(
        self, group: LagClass, left: Sequence[Tensor], right: Sequence[Tensor]
    ) -> Iterable[tuple[Window, Tensor]]:
        """The product over each window: its interior plus its borders."""
        begin, end = group.common
        phases = left[group.phase], right[group.other]
        if begin >= end:
            for window in group.windows:
                yield window, self._product(group, phases, window.begin, window.end)
            return
        interior = self._product(group, phases, begin, end)
        before = self._borders(
            group, phases, sorted({w.begin for w in group.windows}, reverse=True)
        )
        after = self._borders(group, phases, sorted({w.end for w in group.windows}))
        for window in group.windows:
            value = interior
            for border in (before[window.begin], after[window.end]):
                value = value if border is None else value + border
            yield window, value

    def _borders(
        self, group: LagClass, phases: tuple[Tensor, Tensor], cuts: Sequence[int]
    ) -> dict[int, Tensor | None]:
        """Product from the innermost cut to each of the others, cumulated outwards."""
        borders: dict[int, Tensor | None] = {cuts[0]: None}
        for inner, outer in zip(cuts, cuts[1:], strict=False):
            strip = self._product(group, phases, min(inner, outer), max(inner, outer))
            previous = borders[inner]
            borders[outer] = strip if previous is None else strip + previous
        return borders

    def _product(
        self, group: LagClass, phases: tuple[Tensor, Tensor], begin: int, end: int
    ) -> Tensor:
        value: Tensor | None = None
        for start in range(begin, end, self.piece):
            stop = min(start + self.piece, end)
            left = self._piece(phases[0], start, stop)
            right = self._piece(phases[1], start + group.shift, stop + group.shift)
            part = multiply(left, right)
            value = part if value is None else value.add_(part)
        assert value is not None
        if not self._constants:
            return value
        sizes = self.half.sizes
        columns = [
            sizes[j]
            for j in self.unfolding.order[len(self.half.batch) :]
            if j != self.dim.read and j not in self.half.rows
        ]
        batch = [sizes[j] for j in self.half.batch]
        rows = [-1, *columns[1:]] if self.blocked > 1 else columns
        value = value.reshape(*batch, *rows, *columns)
        constants = (constant.like(value) for constant in self._constants)
        return torch.einsum(self._contraction, value, *constants)


def _lengths(group: LagClass) -> list[int]:
    """Lengths of the pieces that are multiplied."""
    begin, end = group.common
    if begin >= end:
        return [window.end - window.begin for window in group.windows]
    cuts = sorted({w.begin for w in group.windows} | {w.end for w in group.windows})
    return [b - a for a, b in zip(cuts, cuts[1:], strict=False)]
