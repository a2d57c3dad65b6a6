"""Sums over kept positions: matrix products with rows read from the other operand.

Given two indices of a pattern, the third has at most one value. So for the kept values
``j`` of a sampled index and all values ``k`` of the one that the result carries, the
other operand is read at ``u(j, k)``, and the pattern is gone::

    result[c, (k, r)] = sum_j  kept[c, j]  read[r, u(j, k)].

This unfolds the other operand, but at kept positions only, a few samples at a time.
With strides, positions of one phase meet the same values ``k``: a product for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np
import torch
from torch import Tensor

from tn_extensions.compiler import plan
from tn_extensions.compiler.cost import Cost, Rates, rates
from tn_extensions.compiler.primitives.forms import MatrixForm
from tn_extensions.network import TensorNetwork
from tn_extensions.network.nodes import Sizes
from tn_extensions.sampling.meetings import Meeting, Phase, Positions
from tn_extensions.sampling.narrowed import narrow
from tn_extensions.sampling.positions import find
from tn_extensions.sampling.unfolded import PIECE, Product, joint, piece, with_zero

_TURNED = 32.0
"""Contiguous run that transposing an operand costs as much as."""


@dataclass(frozen=True)
class Sites:
    """How a network of two operands, with a pattern per dimension, is summed.

    Args:
        kept: Name of the operand whose positions are kept.
        read: Name of the one that is unfolded at them.
        meetings: The patterns.
        batch: Indices of both operands and the result.
        summed: Indices of both operands.
        rows: Indices of the first operand and the result.
        columns: Indices of the second operand and the result.
        output: Indices of the result.
    """

    kept: str
    read: str
    meetings: tuple[Meeting, ...]
    batch: tuple[str, ...]
    summed: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    output: tuple[str, ...]

    @property
    def orders(self) -> dict[str, tuple[str, ...]]:
        """By operand, its indices in the order in which :meth:`run` takes them."""
        first = (*self.batch, *self.summed)
        kept = (each.kept for each in self.meetings)
        read = (each.read for each in self.meetings)
        return {
            self.kept: (*first, *self.rows, *kept),
            self.read: (*first, *self.columns, *read),
        }

    def cost(self, sizes: Sizes, counts: Sizes, speeds: Rates, itemsize: int) -> Cost:
        """Estimated cost.

        Args:
            sizes: Sizes of all indices.
            counts: Numbers of values that are kept, of sampled ones.
            speeds: Speeds of the device.
            itemsize: Bytes per element.
        """
        narrowed = {**sizes, **counts}

        def extent(indices: Sequence[str]) -> int:
            return prod(narrowed[index] for index in indices)

        batch, rows, columns = map(extent, (self.batch, self.rows, self.columns))
        positions = extent([each.kept for each in self.meetings])
        num_phases = prod(each.num_phases for each in self.meetings)
        free = extent([each.free for each in self.meetings])
        width = max(1, columns * free // num_phases)
        samples = extent(self.summed)
        whole = prod(sizes[each.read] for each in self.meetings)
        unfolded = batch * samples * positions * width
        pieces = num_phases * max(1, unfolded // PIECE)
        inner = max(1, samples * positions // pieces)
        one = speeds.product(rows, width, inner, batch, itemsize, contiguous=True)
        one += speeds.move(unfolded / pieces, itemsize, run=4 * columns)
        turned = speeds.move(batch * samples * columns * whole, itemsize, run=_TURNED)
        return turned + one.times(pieces)

    def run(
        self,
        sizes: Sizes,
        operands: Sequence[Tensor],
        held: Mapping[str, Tensor | None],
        sampled: Mapping[str, Tensor],
    ) -> Tensor:
        """Evaluate.

        Args:
            sizes: Sizes of all indices; of those that are in no pattern, narrowed ones.
            operands: The operands, an axis for each index, see :attr:`orders`.
            held: By index of a pattern, positions that an operand has; None for all.
            sampled: By sampled index, those that take part.

        Returns:
            The result, an axis for each index.
        """
        first = [self.batch, self.summed]
        kept = _grouped(operands[0], [*first, self.rows])
        read = _grouped(operands[1], [*first, self.columns])
        extents = operands[1].shape[-len(self.meetings) :]
        parts = [
            (phases, Product(kept, at, table))
            for phases, at, table in self._parts(sizes, extents, held, sampled)
        ]
        reads = max([part.num_reads for _, part in parts], default=1)
        size = max(1, piece(read) // (len(read) * reads * read.shape[2]))
        for start in range(0, read.shape[1], size):
            rows = with_zero(read[:, start : start + size])
            for _, part in parts:
                part.add(rows, start)
        free = [each.free for each in self.meetings]
        counts = [sizes[index] for index in free]
        shape = [len(kept), kept.shape[2], *counts, read.shape[2]]
        result = _assembled(parts, read.new_zeros(shape))
        names = (*self.batch, *self.rows, *free, *self.columns)
        result = result.reshape([sizes[index] for index in names])
        return result.permute([names.index(index) for index in self.output])

    def _parts(
        self,
        sizes: Sizes,
        extents: Sequence[int],
        held: Mapping[str, Tensor | None],
        sampled: Mapping[str, Tensor],
    ) -> Iterator[tuple[tuple[Phase, ...], Positions, Positions]]:
        """Each combination of the dimensions' phases, see :class:`Product`."""
        tables, phases = [], []
        for each in self.meetings:
            table, own_phases = each.reads(sizes)
            if (own := held[each.kept]) is not None:
                at = own.numpy()
                table = table[at]
                own_phases = tuple(
                    phase._replace(members=phase.members[at]) for phase in own_phases
                )
            if each.read in sampled:
                table = np.where(_where(table, sampled[each.read]) < 0, -1, table)
            if (other := held[each.read]) is not None:
                table = _where(table, other)
            tables.append(table)
            phases.append([phase for phase in own_phases if phase.members.any()])
        for chosen in product(*phases):
            members = [phase.members.nonzero()[0][:, None] for phase in chosen]
            at = joint(members, [len(table) for table in tables]).ravel()
            reads = [
                table[np.ix_(*phase)]
                for table, phase in zip(tables, chosen, strict=True)
            ]
            yield chosen, at, joint(reads, extents)


def _where(table: Positions, kept: Tensor) -> Positions:
    """Where values of a table stand among kept ones; -1 if they do not."""
    found: Positions = find(torch.from_numpy(table), kept).numpy()
    return found


def _grouped(tensor: Tensor, groups: Sequence[Sequence[str]]) -> Tensor:
    """One axis for as many as each group has indices, and one for all others."""
    shape, start = [], 0
    for group in groups:
        shape.append(prod(tensor.shape[start : start + len(group)]))
        start += len(group)
    return tensor.reshape(*shape, prod(tensor.shape[start:]))


def _assembled(
    parts: Sequence[tuple[tuple[Phase, ...], Product]], result: Tensor
) -> Tensor:
    """The products in ``[batch, rows, values..., columns]``, which holds zeros."""
    for phases, part in parts:
        counts = [len(phase.values) for phase in phases]
        assert part.total is not None
        total = part.total.unflatten(2, [*counts, -1])
        if total.shape == result.shape:
            return total.to(result.dtype)
        steps = [slice(None)] * 2 + [_progression(phase.values) for phase in phases]
        result[tuple(steps)] = total
    return result


def _progression(values: Positions) -> slice:
    """The slice of equally spaced values."""
    step = values[1] - values[0] if len(values) > 1 else 1
    return slice(int(values[0]), int(values[-1]) + 1, int(step))


@lru_cache(maxsize=4096)
def sites(network: TensorNetwork, kept: str) -> Sites | None:
    """How a network is summed over the positions of an operand; None if it is not.

    Args:
        network: The network.
        kept: Name of an operand.
    """
    for form in MatrixForm.all(network):
        left, right, rows, columns = form.left, form.right, form.rows, form.columns
        if right.operand.name == kept:
            left, right, rows, columns = right, left, columns, rows
        if left.operand.name == kept and not left.dims:
            break
    else:
        return None
    operands = left.operand, right.operand
    found = [Meeting.of(network, each, *operands) for each in network.patterns]
    meetings = tuple(meeting for meeting in found if meeting is not None)
    met = [index for pattern in network.patterns for index in pattern.indices]
    axes = [axis.whole(network.sizes) for one in operands for axis in one.axes]
    if len(meetings) < len(found) or not all(
        indices and (len(indices) == 1 or not set(met) & set(indices))
        for indices in axes
    ):
        return None
    summed, own = (
        tuple(index for index in indices if index not in met)
        for indices in (form.terms, columns)
    )
    read, result = right.operand.name, network.output_indices
    return Sites(kept, read, meetings, form.batch, summed, rows, own, result)


@lru_cache(maxsize=4096)
def cheapest(
    network: TensorNetwork,
    counts: tuple[tuple[str, int], ...],
    dtype: torch.dtype,
    device: str,
) -> Sites | None:
    """How to sum over kept positions; None if zeros for dropped ones take less time.

    Args:
        network: What is estimated.
        counts: Numbers of kept values of each sampled index.
        dtype: Type in which to compute.
        device: Device type.
    """
    kept, speeds, itemsize = dict(counts), rates(device), dtype.itemsize
    ways = {
        way: way.cost(network.sizes, kept, speeds, itemsize).seconds
        for operand in network.operands
        if (way := sites(network, operand.name)) is not None
        and any(each.kept in kept for each in way.meetings)
    }
    if not ways:
        return None
    filled = plan(narrow(network, counts), dtype, device).cost
    patterned = {index for pattern in network.patterns for index in pattern.indices}
    for operand in network.operands:
        if {*operand.indices} & patterned & {*kept}:
            filled += speeds.move(prod(operand.shape), itemsize)
    least = min(ways, key=ways.__getitem__)
    return least if ways[least] < filled.seconds else None
