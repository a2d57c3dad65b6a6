"""Pair over several dimensions: all lags at once by torch's native weight gradient.

The lag sums of an input with itself are the weight gradient of a convolution of that
input whose output gradient is the input again, with a kernel as wide as there are lags.
Only half of the lags of the first dimension are needed, as the result is symmetric.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import ceil, prod

import torch
from torch import Tensor

from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.half import Half, PairedDim
from tn_extensions.compiler.lags import PhaseGroup, Segment, phase_groups
from tn_extensions.compiler.primitives.base import Lowering, Target, Tensors
from tn_extensions.compiler.primitives.unfold import Unfolding, unfolded_dim
from tn_extensions.compiler.sink import Sink
from tn_extensions.compiler.strided import pad
from tn_extensions.network import TensorNetwork
from tn_extensions.network.nodes import Progression

_BLOCK_BYTES = 24 * 2**20
"""Lag sums that are held at a time: more would neither fit a cache nor the budget."""


def correlate(network: TensorNetwork, target: Target) -> Iterable[Lowering]:
    """Correlate the half with itself along all joined dimensions."""
    half = Half.of(network)
    if half is None or 0 in half.sizes.values():
        return
    if not 1 <= len(half.dims) <= 3 or any(dim.free is None for dim in half.dims):
        return
    dims = [unfolded_dim(p, half.operand, half.sizes) for p in half.patterns]
    found = [dim for dim in dims if dim is not None]
    if len(found) != len(dims):
        return
    reads = tuple(dim.read for dim in half.dims)
    order = (*half.rows, *half.batch, *half.unpaired_columns, *reads)
    unfolding = Unfolding(half.operand, found, order, half.sizes)
    name = half.operand.name
    for halved in (True, False):
        work = Correlation(half, unfolding, halved, target)

        def run(tensors: Tensors, sink: Sink, work: Correlation = work) -> None:
            work.add(tensors[name], sink)

        lags = "half of the lags" if halved else "all lags"
        steps = (
            f"copy x to {work.rows} x {work.groups * work.channels} x "
            f"{[half.sizes[read] for read in reads]}",
            f"{work.kernels} native weight gradients, {lags}, "
            f"in blocks of {work.block} channels",
            "add interiors and borders, scatter lags to kernel positions",
        )
        yield Lowering(f"correlate, {lags}", steps, work.cost(), run)


@dataclass(frozen=True, slots=True)
class Lags:
    """Lags of one dimension that the members of a segment need.

    Args:
        first: Smallest lag.
        spacing: Distance of lags.
        count: Number of lags.
    """

    first: int
    spacing: int
    count: int

    @classmethod
    def of(cls, group: PhaseGroup, members: Sequence[Progression], halved: bool) -> Lags:
        """Lags from members to partners; if halved, the non-negative ones."""
        offsets = [member.offset for member in members]
        first = 0 if halved else group.partners[0].offset - max(offsets)
        last = group.partners[-1].offset - min(offsets)
        return cls(first, group.spacing, (last - first) // group.spacing + 1)

    def slice(self, group: PhaseGroup, member: Progression, halved: bool) -> slice:
        """Where the lags from one member to its partners are."""
        low = member.offset if halved else group.partners[0].offset
        begin = (low - member.offset - self.first) // self.spacing
        end = (group.partners[-1].offset - member.offset - self.first) // self.spacing
        return slice(begin, end + 1)


class Correlation:
    """Lag sums of a half with itself along all of its joined dimensions."""

    def __init__(
        self, half: Half, unfolding: Unfolding, halved: bool, target: Target
    ) -> None:
        self.half, self.unfolding, self.halved, self.target = (
            half,
            unfolding,
            halved,
            target,
        )
        sizes = half.sizes
        self.rows = prod(sizes[j] for j in half.rows)
        self.groups = prod(sizes[j] for j in half.batch)
        self.channels = prod(sizes[j] for j in half.unpaired_columns)
        self.phases = [phase_groups(dim.progressions) for dim in half.dims]
        self.padding = [
            self._padding(axis, dim) for axis, dim in enumerate(half.dims)
        ]
        lags = self.target.itemsize * sum(
            prod(lag.count for lag in self._lags(choice, segments))
            for choice, segments in self._pieces()
        )
        # blocks of groups where there are several, else of output channels
        self.blocked = self.groups
        if self.groups == 1 and len(half.unpaired_columns) == 1:
            self.blocked = self.channels
        per_entry = self.groups * self.channels**2 * lags // self.blocked
        wanted = max(1, min(_BLOCK_BYTES, target.budget // 2) // max(per_entry, 1))
        self.block = ceil(self.blocked / ceil(self.blocked / min(wanted, self.blocked)))
        self.held = ceil(per_entry * self.block * 1.5 / self.target.itemsize)
        self.held += 3 * prod(unfolding.shape)

    def _is_halved(self, axis: int) -> bool:
        return self.halved and axis == 0

    @property
    def kernels(self) -> int:
        """Number of native weight gradients."""
        return sum(1 for _ in self._pieces()) * ceil(self.blocked / self.block)

    def _pieces(self) -> Iterator[tuple[tuple[PhaseGroup, ...], tuple[Segment, ...]]]:
        for choice in product(*self.phases):
            for segments in product(*(group.segments for group in choice)):
                yield choice, segments

    def _lags(
        self, choice: Sequence[PhaseGroup], segments: Sequence[Segment]
    ) -> list[Lags]:
        return [
            Lags.of(group, segment.members, self._is_halved(axis))
            for axis, (group, segment) in enumerate(zip(choice, segments, strict=True))
        ]

    def _padding(self, axis: int, dim: PairedDim) -> tuple[int, int]:
        low, high = 0, self.half.sizes[dim.read] - 1
        for group in self.phases[axis]:
            for segment in group.segments:
                lags = Lags.of(group, segment.members, self._is_halved(axis))
                start = group.phase + group.step * segment.begin + lags.first
                length = self._length(group, segment, lags)
                low, high = min(low, start), max(high, start + length - 1)
        return -low, high - self.half.sizes[dim.read] + 1

    @staticmethod
    def _length(group: PhaseGroup, segment: Segment, lags: Lags) -> int:
        span = group.step * (segment.end - segment.begin - 1)
        return span + lags.spacing * (lags.count - 1) + 1

    def cost(self) -> Cost:
        """Estimate."""
        rates, itemsize = self.target.rates, self.target.itemsize
        elements = prod(self.unfolding.shape)
        total = rates.move(elements, itemsize).times(3)
        depthwise = self.channels < 4
        rate = rates.correlate_depthwise if depthwise else rates.correlate
        # channels come in vectors of 16
        filled = 1.0 if depthwise else self.channels / (16 * ceil(self.channels / 16))
        blocks = ceil(self.blocked / self.block)
        for choice, segments in self._pieces():
            area = prod(segment.end - segment.begin for segment in segments)
            taps = prod(lag.count for lag in self._lags(choice, segments))
            flops = float(self.groups * self.channels**2 * self.rows * area * taps)
            # short rows leave the native kernel's registers idle
            width = segments[-1].end - segments[-1].begin
            share = filled * width / (width + 4)
            written = itemsize * self.groups * self.channels**2 * taps
            seconds = flops / (rate * share) + 2 * written / rates.copy
            overhead = 8 * rates.call * blocks
            total = total + Cost(flops, written, 8 * blocks, 0, seconds + overhead)
        columns = self.channels * prod(len(dim.progressions) for dim in self.half.dims)
        run = len(self.half.dims[-1].progressions)
        writes = rates.move(self.groups * columns**2, itemsize, run)
        adds = rates.move(self.groups * columns**2, itemsize, 16)
        mirrored = rates.move(self.groups * columns**2 / 3, itemsize, 1)
        total = total + writes + adds + (mirrored if self.halved else Cost())
        members = prod(len(dim.progressions) for dim in self.half.dims)
        total = total + Cost(seconds=4 * members * blocks * rates.call)
        return total.holding(self.held)

    def add(self, tensor: Tensor, sink: Sink) -> None:
        """Add all lag sums of a tensor to the sink."""
        sizes = self.half.sizes
        unfolded = self.unfolding.tensor(tensor)
        space = [sizes[dim.read] for dim in self.half.dims]
        x = unfolded.reshape(self.rows, self.groups * self.channels, *space)
        padded = pad(x, dict(enumerate(self.padding, start=2)))
        views = [self._view(out) for out in (sink.out, sink.out.mT)]
        if sink.fresh and not self._covers():
            sink.out.zero_()
            sink.fresh = False
        for start in range(0, self.blocked, self.block):
            stop = min(start + self.block, self.blocked)
            self._add_block(x, padded, views, slice(start, stop), sink)

    def _covers(self) -> bool:
        """Whether every pair of kernel positions is written."""
        return all(
            len(groups) > 0
            and all(len(g.partners) == len(dim.progressions) for g in groups)
            and sum(len(g.members) for g in groups) == len(dim.progressions)
            for groups, dim in zip(self.phases, self.half.dims, strict=True)
        )

    def _view(self, out: Tensor) -> Tensor:
        """The result as ``[G, rest..., rest'..., k1, k2, ..., k1', k2', ...]``."""
        half = self.half
        sizes = [half.sizes[j] for j in half.columns]
        split = out.reshape(self.groups, *sizes, *sizes)
        rest = [half.columns.index(j) + 1 for j in half.unpaired_columns]
        free = [half.columns.index(str(dim.free)) + 1 for dim in half.dims]
        shift = len(sizes)
        order = [
            *rest,
            *(axis + shift for axis in rest),
            *free,
            *(axis + shift for axis in free),
        ]
        return split.permute(0, *order)

    def _add_block(
        self,
        x: Tensor,
        padded: Tensor,
        views: Sequence[Tensor],
        block: slice,
        sink: Sink,
    ) -> None:
        for choice in product(*self.phases):
            sums = {
                segments: self._lag_sums(x, padded, choice, segments, block)
                for segments in product(*(group.segments for group in choice))
            }
            for members in product(*(group.members for group in choice)):
                pieces = [
                    self._met(sums[segments], choice, segments, members)
                    for segments in sums
                    if all(
                        member in segment.members
                        for member, segment in zip(members, segments, strict=True)
                    )
                ]
                total = reduce(Tensor.add, pieces[1:], pieces[0])
                self._put(total, choice, members, views, block, sink)

    def _lag_sums(
        self,
        x: Tensor,
        padded: Tensor,
        choice: Sequence[PhaseGroup],
        segments: Sequence[Segment],
        block: slice,
    ) -> Tensor:
        """Sums over a box of positions: ``[G, rest..., rest'..., lags...]``."""
        lags = self._lags(choice, segments)
        left, right = x, padded
        if self.groups > 1:
            merged = slice(block.start * self.channels, block.stop * self.channels)
            left, right = left[:, merged], right[:, merged]
        elif self.blocked > 1:
            left = left[:, block]
        for axis, (group, segment, lag) in enumerate(
            zip(choice, segments, lags, strict=True)
        ):
            begin = group.phase + group.step * segment.begin
            end = begin + group.step * (segment.end - segment.begin - 1) + 1
            index = (slice(None),) * (axis + 2)
            left = left[(*index, slice(begin, end, group.step))]
            start = begin + lag.first + self.padding[axis][0]
            length = self._length(group, segment, lag)
            right = right[(*index, slice(start, start + length))]
        kernel = [lag.count for lag in lags]
        groups = block.stop - block.start if self.groups > 1 else 1
        result = weight_gradient(
            right,
            left,
            kernel,
            [group.step for group in choice],
            [lag.spacing for lag in lags],
            groups,
        )
        rest = [self.half.sizes[j] for j in self.half.unpaired_columns]
        rows = [-1] if self.groups == 1 and len(rest) == 1 else rest
        return result.reshape(groups, *rows, *rest, *kernel)

    def _met(
        self,
        sums: Tensor,
        choice: Sequence[PhaseGroup],
        segments: Sequence[Segment],
        members: Sequence[Progression],
    ) -> Tensor:
        """The lag sums that lead from a kernel position to its partners."""
        where = [
            lags.slice(group, member, self._is_halved(axis))
            for axis, (group, member, lags) in enumerate(
                zip(choice, members, self._lags(choice, segments), strict=True)
            )
        ]
        return sums[(..., *where)]

    def _put(
        self,
        total: Tensor,
        choice: Sequence[PhaseGroup],
        members: Sequence[Progression],
        views: Sequence[Tensor],
        block: slice,
        sink: Sink,
    ) -> None:
        """Write the sums of one kernel position and, if halved, their mirror image."""
        lag_axis = total.dim() - len(choice)
        for view, skipped in zip(views[: 1 + self.halved], (0, 1), strict=False):
            # the mirror image of a position's product with itself is that product
            where, flips = [], []
            for axis, (group, member) in enumerate(zip(choice, members, strict=True)):
                partners = group.partners
                if self._is_halved(axis):
                    partners = partners[partners.index(member) + skipped :]
                if not partners:
                    return
                where.append(_as_slice(partners))
                if partners[0].free > partners[-1].free:
                    flips.append(lag_axis + axis)
            value = total.narrow(lag_axis, skipped, total.shape[lag_axis] - skipped)
            value = value.flip(flips) if flips else value
            target = view[block] if self.groups > 1 else self._rows(view, block)
            lead = (slice(None),) * (target.dim() - 2 * len(choice))
            own = (member.free for member in members)
            sink.put(target[(*lead, *own, *where)], value)

    def _rows(self, view: Tensor, block: slice) -> Tensor:
        return view[:, block] if self.blocked > 1 else view


def _as_slice(partners: Sequence[Progression]) -> slice:
    """Where the partners are, in increasing order."""
    values = sorted(partner.free for partner in partners)
    step = values[1] - values[0] if len(values) > 1 else 1
    return slice(values[0], values[-1] + 1, step)


def weight_gradient(
    x: Tensor,
    g: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Native weight gradient of an unpadded convolution: ``[C_out, C_in / G, K...]``."""
    shape = (g.shape[1], x.shape[1] // groups, *kernel)
    # torch asks for a weight but reads its shape only
    weight = x.new_empty(1).expand(shape)
    zeros = [0] * len(kernel)
    _, result, _ = torch.ops.aten.convolution_backward(
        g,
        x,
        weight,
        None,
        list(stride),
        zeros,
        list(dilation),
        False,
        zeros,
        groups,
        [False, True, False],
    )
    return result
