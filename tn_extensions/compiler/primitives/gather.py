"""Gather: sum over sampled positions of one operand, and read the other one there.

Two indices of a pattern determine the third, if there is a value at all. So for sampled
positions ``j`` of one operand and all values ``k`` of an index of the result, the other
operand is read at ``u(j, k)``::

    result[c, (k, r)] = sum_j  summed[c, j]  read[r, u(j, k)].

This unfolds the other operand at sampled positions only, for a few samples at a time.
With strides, positions of a phase have the same values ``k``; each phase is a product.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from math import ceil, gcd, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.candidate import (
    Candidate,
    Operation,
    Target,
    Tensors,
    as_defined,
)
from tn_extensions.compiler.product import multiply
from tn_extensions.compiler.slices import find
from tn_extensions.compiler.strided import arrangement
from tn_extensions.network import Operand, Pattern, TensorNetwork
from tn_extensions.network.nodes import Sizes, Values

_AT_ONCE = 2**22
"""Number of elements that are unfolded at a time; more would not be faster."""

_TURNED = 32
"""Run length of copies that are about as fast as transposing an operand."""


@as_defined
def gather(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Sum over the sampled positions of one operand."""
    if 0 not in network.sizes.values():
        for sums in Sums.all(network):
            yield _candidate(network, sums, target)


@dataclass(frozen=True, slots=True)
class Phase:
    """Positions of the sum that have the same values of the free index.

    Args:
        members: The positions.
        values: The values, a slice of the result.
        table: Positions at which the other operand is read, ``[members, values]``; -1
            for none.
    """

    members: Values
    values: slice
    table: Values


@dataclass(frozen=True, slots=True)
class Reads:
    """A pattern that maps positions of one operand to positions of the other.

    Args:
        pattern: The pattern.
        summed: Its index that is summed over.
        read: Its index along which the other operand is read.
        free: Its index that the result carries.
        along: The indices that the operands carry for ``summed`` and ``read``: the same
            ones or, if they are sampled, the indices of their sampled positions.
    """

    pattern: Pattern
    summed: str
    read: str
    free: str
    along: tuple[str, str]

    @classmethod
    def of(
        cls, network: TensorNetwork, pattern: Pattern, summed: Operand, read: Operand
    ) -> Reads | None:
        """Read a pattern between two operands and the result; None for any other."""
        sampled = {each.index: each.kept for each in network.selections}
        carried = (summed.indices, read.indices, network.output_indices)
        found = [
            [index for index in pattern.indices if sampled.get(index, index) in own]
            for own in carried
        ]
        if pattern.summed or [len(own) for own in found] != [1, 1, 1]:
            return None
        (one,), (two,), (free,) = found
        if {one, two, free} != {*pattern.indices} or free in sampled:
            return None
        along = sampled.get(one, one), sampled.get(two, two)
        return cls(pattern, one, two, free, along)

    @property
    def num_phases(self) -> int:
        """Number of phases, if there are enough positions."""
        if self.read == self.pattern.index:
            return 1
        terms = dict(self.pattern.position.terms)
        other = self.summed if self.free == self.pattern.index else self.free
        return abs(terms[self.read]) // gcd(terms[self.read], terms[other])

    def phases(self, sizes: Sizes, tensors: Tensors) -> Iterator[Phase]:
        """Yield the positions of each phase."""
        summed, read = (tensors.get(index) for index in self.along)
        positions = np.arange(sizes[self.summed])
        if summed is not None:
            positions = summed.cpu().numpy()
        given = {
            self.summed: positions[:, None],
            self.free: np.arange(sizes[self.free])[None],
        }
        table, exact = self.pattern.solve(self.read, given, sizes)
        if read is not None:
            table = find(torch.from_numpy(table), read.cpu()).numpy()
        exact = np.broadcast_to(exact, table.shape)
        masks, which = np.unique(exact, axis=0, return_inverse=True)
        for number, mask in enumerate(masks):
            members = (which.reshape(-1) == number).nonzero()[0]
            values = mask.nonzero()[0]
            if len(values):
                step = int(values[1] - values[0]) if len(values) > 1 else 1
                progression = slice(int(values[0]), int(values[-1]) + 1, step)
                yield Phase(members, progression, table[members[:, None], values])


@dataclass(frozen=True, slots=True)
class Sums:
    """A network of two operands, with patterns between them and the result.

    Args:
        summed: The operand whose positions are summed over.
        read: The other operand.
        reads: The patterns.
        batch: Indices of both operands and the result.
        samples: Indices of both operands only.
        rows: Indices of ``summed`` and the result.
        columns: Indices of ``read`` and the result.
    """

    summed: Operand
    read: Operand
    reads: tuple[Reads, ...]
    batch: tuple[str, ...]
    samples: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def all(cls, network: TensorNetwork) -> Iterator[Sums]:
        """Yield the sums over sampled positions of either operand in a network."""
        if len(network.operands) != 2 or network.pairs or not network.selections:
            return
        output = {*network.output_indices}
        for summed, read in permutations(network.operands):
            found = [Reads.of(network, p, summed, read) for p in network.patterns]
            reads = tuple(each for each in found if each is not None)
            used = {index for each in reads for index in each.along}
            one, two = (
                [index for index in operand.indices if index not in used]
                for operand in (summed, read)
            )
            both = [index for index in one if index in two]
            if (
                len(reads) == len(found)
                and used.issuperset(each.kept for each in network.selections)
                and any(each.along[0] != each.summed for each in reads)
                and output.issuperset({*one} ^ {*two})
                and all(a.whole(network.sizes) for a in (*summed.axes, *read.axes))
            ):
                yield cls(
                    summed,
                    read,
                    reads,
                    tuple(index for index in both if index in output),
                    tuple(index for index in both if index not in output),
                    tuple(index for index in one if index not in two),
                    tuple(index for index in two if index not in one),
                )

    @property
    def layouts(self) -> Iterator[tuple[Operand, tuple[tuple[str, ...], ...]]]:
        """Both operands, with the indices of axes ``[batch, samples, own, space]``."""
        for number, operand in enumerate((self.summed, self.read)):
            own = self.columns if number else self.rows
            at = tuple(each.along[number] for each in self.reads)
            yield operand, (self.batch, self.samples, own, at)


def _candidate(network: TensorNetwork, sums: Sums, target: Target) -> Candidate:
    sizes, reads = network.sizes, sums.reads
    layouts = list(sums.layouts)
    lengths = [
        [prod(sizes[index] for index in group) for group in layout]
        for _, layout in layouts
    ]
    (batch, samples, rows, summed), (_, _, columns, read) = lengths
    free = tuple(each.free for each in reads)
    counts = [sizes[index] for index in free]
    num_phases = prod(each.num_phases for each in reads)
    width = columns * max(1, prod(counts) // num_phases)
    inner = max(1, summed // num_phases)
    block = min(samples, max(1, _AT_ONCE // (batch * inner * width)))
    names = (*sums.batch, *sums.rows, *free, *sums.columns)
    order = [names.index(index) for index in network.output_indices]
    arrangements = [arrangement(x.indices, layout, sizes) for x, layout in layouts]

    def run(tensors: Tensors, into: Accumulator) -> None:
        left, right = (
            arrange(tensors[operand.name])
            for (operand, _), arrange in zip(layouts, arrangements, strict=True)
        )
        positions, extents = (
            [sizes[index] for index in layout[-1]] for _, layout in layouts
        )
        products = [
            Product.of(phases, positions, extents, left.device)
            for phases in product(*(each.phases(sizes, tensors) for each in reads))
        ]
        # in single precision at least
        wide = torch.promote_types(left.dtype, torch.float32)
        result = left.new_zeros([batch, rows, *counts, columns], dtype=wide)
        for start in range(0, samples, block):
            one, two = (each[:, start : start + block] for each in (left, right))
            unfoldable = _with_zero(two)
            for each in products:
                each.add(result, one, unfoldable)
        result = result.reshape([sizes[index] for index in names])
        into.put(into.out, result.permute(order).reshape(network.shape))

    rates, itemsize = target.rates, target.itemsize
    blocks, unfolded = ceil(samples / block), batch * block * inner * width
    turned = rates.move(batch * block * columns * read, itemsize, _TURNED)
    gathered = rates.move(unfolded, itemsize, 4 * columns)
    product_of = rates.product(rows, width, block * inner, batch, itemsize)
    shapes = f"[{batch}] {rows} x {block * inner} @ {block * inner} x {width}"
    pieces = blocks * num_phases
    operations = (
        Operation(
            f"channels of {sums.read.name} last",
            f"{block} x {columns} x {read}",
            turned,
            blocks,
        ),
        Operation(
            f"read {sums.read.name} at {sums.summed.name}'s positions",
            f"{block * inner} x {width}",
            gathered,
            pieces,
        ),
        Operation("matrix product", shapes, product_of, pieces),
    )
    held = unfolded + batch * (block * columns * read + rows * width * num_phases)
    return Candidate("gather", operations, held, run)


@dataclass(frozen=True, slots=True)
class Product:
    """The contribution of one phase of each dimension to the result.

    Args:
        members: Flat positions of the sum.
        table: Flat positions at which the other operand is read, ``[members, values]``;
            past its end for none.
        values: Slices of the result, by dimension.
    """

    members: Tensor
    table: Tensor
    values: tuple[slice, ...]

    @classmethod
    def of(
        cls,
        phases: Sequence[Phase],
        positions: Sequence[int],
        extents: Sequence[int],
        device: torch.device,
    ) -> Product:
        """Combine phases of all dimensions.

        Args:
            phases: A phase of each dimension.
            positions: Number of positions of the sum in each dimension.
            extents: Size of the other operand in each dimension.
            device: Device of the operands.

        Returns:
            Their contribution.
        """
        members = _joint([phase.members[:, None] for phase in phases], positions)
        table = _joint([phase.table for phase in phases], extents)
        return cls(
            torch.from_numpy(members[:, 0]).to(device, torch.int64),
            torch.from_numpy(table).to(device),
            tuple(phase.values for phase in phases),
        )

    def add(self, result: Tensor, left: Tensor, right: Tensor) -> None:
        """Add the sum over the positions of some samples.

        Args:
            result: Tensor to add to, ``[batch, rows, values..., columns]``.
            left: The summed operand, ``[batch, samples, rows, positions]``.
            right: The other one, ``[batch, samples, length + 1, columns]``, with zeros
                at the end.
        """
        batch, samples, length, columns = right.shape
        if len(self.members) < left.shape[3]:
            left = left.gather(3, self.members.expand(*left.shape[:3], -1))
        starts = length * torch.arange(samples, device=right.device)
        where = (starts.to(self.table)[:, None, None] + self.table).flatten()
        unfolded = right.flatten(1, 2).index_select(1, where)
        unfolded = unfolded.reshape(batch, samples * len(self.members), -1)
        total = multiply(left.transpose(1, 2).flatten(2), unfolded.mT)
        target = result[(slice(None), slice(None), *self.values)]
        target.add_(total.reshape(target.shape))


def _joint(tables: Sequence[Values], extents: Sequence[int]) -> NDArray[np.int32]:
    """Combine positions of several dimensions to flat positions.

    Args:
        tables: Positions ``[rows, columns]`` of each dimension; -1 for none.
        extents: Sizes of the dimensions.

    Returns:
        Flat positions ``[all rows, all columns]``; past the end where there is none.
    """
    end = prod(extents)
    flat = np.zeros((), dtype=np.int32)  # the tables are large
    for number, table in enumerate(tables):
        own = np.where(table < 0, end, table * prod(extents[number + 1 :]))
        shape = [1] * (2 * len(tables))
        shape[number], shape[len(tables) + number] = table.shape
        flat = flat + own.astype(np.int32).reshape(shape)
    rows = prod(len(table) for table in tables)
    return np.minimum(flat, end).reshape(rows, -1)


def _with_zero(tensor: Tensor) -> Tensor:
    """Transpose ``[batch, samples, columns, length]``, and append a row of zeros."""
    batch, samples, columns, length = tensor.shape
    rows = tensor.new_empty(batch, samples, length + 1, columns)
    rows[:, :, :-1].copy_(tensor.mT)
    rows[:, :, -1].zero_()
    return rows
