"""Pair over several dimensions: all lags at once by torch's native weight gradient.

The lag sums of an input with itself are the weight gradient of a convolution of that
input whose output gradient is the input again, with a kernel as wide as there are lags.
Lags of different sign are summed apart: one half of them mirrors the other, and at most
lags other than zero the windows of all kernel positions coincide. Where they don't, the
native kernel sums over what they share, and each position adds its borders, one
dimension after the other, by small matrix products.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.half import Half
from tn_extensions.compiler.lags import LagGroup, Member, lag_groups
from tn_extensions.compiler.primitives.base import Lowering, Target, Tensors
from tn_extensions.compiler.primitives.unfold import Unfolding, unfolded_dims
from tn_extensions.compiler.product import multiply
from tn_extensions.compiler.regions import Region, first_sign, interior, padding
from tn_extensions.compiler.sink import Sink
from tn_extensions.compiler.strided import pad
from tn_extensions.network import TensorNetwork
from tn_extensions.network.nodes import Progression

_BLOCK_BYTES = 6 * 2**20
"""Lag sums that are held at a time, so that they stay in the cache."""

_TERMS = 2048
"""Terms that the native kernel adds up at a time, so that sums stay accurate."""


def correlate(network: TensorNetwork, target: Target) -> Iterable[Lowering]:
    """Correlate the half with itself along all joined dimensions."""
    half = Half.of(network)
    if half is None or 0 in half.sizes.values():
        return
    if not 1 <= len(half.dims) <= 3 or any(dim.free is None for dim in half.dims):
        return
    found = unfolded_dims(half.patterns, half.operand, half.sizes)
    if found is None:
        return
    reads = tuple(dim.read for dim in half.dims)
    order = (*half.rows, *half.batch, *half.unpaired_columns, *reads)
    unfolding = Unfolding(half.operand, found, order, half.sizes)
    work = Correlation(half, unfolding, target)

    def run(tensors: Tensors, sink: Sink) -> None:
        work.add(tensors[half.operand.name], sink)

    steps = (
        f"copy x to {work.rows} x {work.groups * work.channels} x "
        f"{[half.sizes[read] for read in reads]}",
        f"{len(work.choices)} native weight gradients for half of the lags, "
        f"in blocks of {work.block} rows",
        "add borders by matrix products, scatter lags to kernel positions",
    )
    yield Lowering("correlate", steps, work.cost(), run)


class Correlation:
    """Lag sums of a half with itself along all of its joined dimensions."""

    def __init__(self, half: Half, unfolding: Unfolding, target: Target) -> None:
        self.half, self.unfolding, self.target = half, unfolding, target
        sizes = half.sizes
        self.rows = prod(sizes[j] for j in half.rows)
        self.groups = prod(sizes[j] for j in half.batch)
        self.channels = prod(sizes[j] for j in half.unpaired_columns)
        lag_choices = [lag_groups(d.progressions, sizes[d.read]) for d in half.dims]
        self.choices = [c for c in product(*lag_choices) if first_sign(c) >= 0]
        self.padding = [
            padding(groups, sizes[dim.read])
            for groups, dim in zip(lag_choices, half.dims, strict=True)
        ]
        self.covers = all(
            sum(len(group.members) for group in groups if group.sign == 0)
            == len(dim.progressions)
            and len({value.residue for value in dim.progressions}) == 1
            for groups, dim in zip(lag_choices, half.dims, strict=True)
        )
        lags = max(
            (prod(region.lags for region in interior(c)) for c in self.choices),
            default=1,
        )
        # blocks of groups where there are several, else of output channels
        self.blocked = self.groups
        if self.groups == 1 and len(half.unpaired_columns) == 1:
            self.blocked = self.channels
        per_entry = self.groups * self.channels**2 * lags // self.blocked
        held = 3 * per_entry * target.itemsize
        wanted = max(min(16, self.blocked), min(_BLOCK_BYTES, target.budget) // held)
        blocks = ceil(self.blocked / wanted)
        self.block = ceil(self.blocked / blocks)
        self.held = ceil(held * self.block / target.itemsize)
        self.held += 3 * prod(unfolding.shape)

    def cost(self) -> Cost:
        """Estimate."""
        rates, itemsize = self.target.rates, self.target.itemsize
        total = rates.move(prod(self.unfolding.shape), itemsize).times(3)
        depthwise = self.channels < 4
        rate = rates.correlate_depthwise if depthwise else rates.correlate
        # channels come in vectors of 16
        filled = 1.0 if depthwise else self.channels / (16 * ceil(self.channels / 16))
        blocks = ceil(self.blocked / self.block)
        pairs = float(self.groups * self.channels**2)
        for choice in self.choices:
            common = interior(choice)
            taps = prod(region.lags for region in common)
            flops = pairs * self.rows * taps * prod(r.count for r in common)
            # few taps and short rows leave the native kernel's registers idle
            width = common[-1].count
            share = filled * width / (width + 2) * taps / (taps + 1)
            seconds = flops / (rate * share) if width else 0.0
            seconds += pairs * taps * itemsize * 2 / rates.copy
            calls = blocks * len(self.chunks(common))
            total = total + Cost(flops, 0, calls, 0, seconds + 5 * rates.call * calls)
            for regions, border in self._all_borders(choice):
                inner = self.rows * prod(region.count for region in regions)
                taps = prod(region.lags for region in regions)
                if border:
                    gather = rates.move(
                        self.groups * self.channels * taps * inner, itemsize, 16
                    )
                    matmul = rates.product(
                        ceil(self.blocked / blocks) if self.groups == 1 else 1,
                        self.channels * taps,
                        inner,
                        self.groups if self.groups > 1 else blocks,
                        itemsize,
                    )
                    clone = rates.move(pairs * taps, itemsize, 16)
                    total = total + gather + matmul + clone
                total = total + Cost(seconds=2 * blocks * rates.call)
        columns = self.channels * prod(len(dim.progressions) for dim in self.half.dims)
        total = total + rates.move(self.groups * columns**2, itemsize, 2)
        return total.holding(self.held)

    def _all_borders(
        self, choice: Sequence[LagGroup]
    ) -> Iterator[tuple[list[Region], bool]]:
        """Regions that are added while going through all members, for the estimate."""
        common = interior(choice)
        for depth in range(1, len(choice) + 1):
            for members in product(*(group.members for group in choice[:depth])):
                regions = [
                    Region.of(group, [member], member.window)
                    for group, member in zip(choice, members, strict=False)
                ]
                borders = choice[depth - 1].borders(members[-1])
                window = range(sum(map(len, borders)))
                last = Region.of(choice[depth - 1], members[-1:], window)
                yield [*regions[:-1], last, *common[depth:]], bool(borders)

    def chunks(self, regions: Sequence[Region]) -> list[tuple[slice, list[Region]]]:
        """Parts of the rows and of the first region that are short enough to sum.

        The native kernel adds up its terms one by one, so long sums lose digits.
        """
        area = max(1, prod(region.count for region in regions))
        first, *others = regions
        pieces = ceil(area / _TERMS)
        size = max(1, ceil(first.count / pieces))
        rows = max(1, _TERMS * first.count // (area * size)) if pieces == 1 else 1
        return [
            (slice(start, start + rows), [first.part(begin, size), *others])
            for start in range(0, self.rows, rows)
            for begin in range(0, first.count, size)
        ]

    def add(self, tensor: Tensor, sink: Sink) -> None:
        """Add all lag sums of a tensor to the sink."""
        sizes = self.half.sizes
        space = [sizes[dim.read] for dim in self.half.dims]
        unfolded = self.unfolding.tensor(tensor)
        x = unfolded.reshape(self.rows, self.groups * self.channels, *space)
        padded = pad(x, dict(enumerate(self.padding, start=2)))
        views = [self._view(out) for out in (sink.out, sink.out.mT)]
        if sink.fresh and not self.covers:
            sink.out.zero_()
            sink.fresh = False
        for start in range(0, self.blocked, self.block):
            block = slice(start, min(start + self.block, self.blocked))
            left, right, parts = x, padded, views
            if self.groups > 1:
                merged = slice(block.start * self.channels, block.stop * self.channels)
                left, right = x[:, merged], padded[:, merged]
                parts = [view[block] for view in views]
            elif self.blocked > 1:
                left = x[:, block]
                parts = [view[:, block] for view in views]
            groups = block.stop - block.start if self.groups > 1 else 1
            for choice in self.choices:
                Walk(self, left, right, groups, choice).put_all(parts, sink)

    def _view(self, out: Tensor) -> Tensor:
        """The result as ``[G, rest..., rest'..., k1, k2, ..., k1', k2', ...]``."""
        half = self.half
        sizes = [half.sizes[j] for j in half.columns]
        split = out.view(self.groups, *sizes, *sizes)
        rest = [half.columns.index(j) + 1 for j in half.unpaired_columns]
        free = [half.columns.index(str(dim.free)) + 1 for dim in half.dims]
        copies = [[axis + len(sizes) for axis in axes] for axes in (rest, free)]
        return split.permute(0, *rest, *copies[0], *free, *copies[1])


class Walk:
    """Goes through the kernel positions that one lag group a dimension serves.

    Sums are tensors ``[G, rows, rest', lags...]`` with flattened channels; ``regions``
    say which positions have been summed and which lags are held.
    """

    def __init__(
        self,
        work: Correlation,
        left: Tensor,
        right: Tensor,
        groups: int,
        choice: Sequence[LagGroup],
    ) -> None:
        self.work, self.left, self.right = work, left, right
        self.groups, self.choice = groups, choice
        self.lead = (groups, left.shape[1] // groups, right.shape[1] // groups)

    def put_all(self, views: Sequence[Tensor], sink: Sink) -> None:
        """Write the sums of all kernel positions, mirrored if that differs."""
        targets = views[:1] if first_sign(self.choice) == 0 else views
        regions = interior(self.choice)
        self._descend(0, self._native(regions), regions, [], targets, sink)

    def _descend(
        self,
        axis: int,
        sums: Tensor,
        regions: list[Region],
        chosen: list[Member],
        views: Sequence[Tensor],
        sink: Sink,
    ) -> None:
        """Complete the sums along an axis for each member, then along the next."""
        if axis == len(self.choice):
            self._put(sums, chosen, views, sink)
            return
        group = self.choice[axis]
        for member in group.members:
            region = Region.of(group, [member], member.window)
            value = sums[(*(slice(None),) * (3 + axis), region.within(regions[axis]))]
            borders = group.borders(member)
            if borders:
                value = value.clone(memory_format=torch.contiguous_format)
            for border in borders:
                strip = Region.of(group, [member], border)
                self._add_product(value, [*regions[:axis], strip, *regions[axis + 1 :]])
            done = [*regions[:axis], region, *regions[axis + 1 :]]
            self._descend(axis + 1, value, done, [*chosen, member], views, sink)

    def _boxes(
        self, regions: Sequence[Region], rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """The positions, and all that their lags lead to."""
        left, right = self.left[rows], self.right[rows]
        for axis, region in enumerate(regions, start=2):
            shift = self.work.padding[axis - 2][0]
            index = (slice(None),) * axis
            left = left[(*index, region.own)]
            read = region.read
            right = right[(*index, slice(read.start + shift, read.stop + shift))]
        return left, right

    def _native(self, regions: Sequence[Region]) -> Tensor:
        """Sums over a box of positions by the native kernel."""
        kernel = [region.lags for region in regions]
        total: Tensor | None = None
        if all(region.count for region in regions):
            for rows, parts in self.work.chunks(regions):
                left, right = self._boxes(parts, rows)
                step, spacing = zip(*((r.step, r.spacing) for r in parts), strict=True)
                part = weight_gradient(right, left, kernel, step, spacing, self.groups)
                total = part if total is None else total.add_(part)
        if total is None:
            return self.left.new_zeros(*self.lead, *kernel)
        return total.reshape(*self.lead, *kernel)

    def _add_product(self, sums: Tensor, regions: Sequence[Region]) -> None:
        """Add the sums over a thin box of positions by a matrix product, in place."""
        if any(region.count == 0 for region in regions):
            return
        left, right = self._boxes(regions)
        # right: [N, C', read...] -> [C', lags..., N, positions...]
        stride = right.stride()
        shape = [right.shape[1], *(r.lags for r in regions), right.shape[0]]
        shape += [r.count for r in regions]
        strides = [stride[1]]
        strides += [s * r.spacing for s, r in zip(stride[2:], regions, strict=True)]
        strides += [stride[0]]
        strides += [s * r.step for s, r in zip(stride[2:], regions, strict=True)]
        shifted = right.as_strided(shape, strides, right.storage_offset())
        groups, rows, columns = self.lead
        columns *= prod(r.lags for r in regions)
        left = left.transpose(0, 1).reshape(groups, rows, -1)
        shifted = shifted.reshape(groups, columns, -1)
        sums.view(groups, rows, columns).add_(multiply(left, shifted))

    def _put(
        self,
        sums: Tensor,
        chosen: Sequence[Member],
        views: Sequence[Tensor],
        sink: Sink,
    ) -> None:
        """Write the sums from one kernel position to its partners."""
        flips = [
            3 + axis
            for axis, member in enumerate(chosen)
            if member.partners[0].free > member.partners[-1].free
        ]
        sums = sums.flip(flips) if flips else sums
        own = [member.value.free for member in chosen]
        where = [_as_slice(member.partners) for member in chosen]
        for view in views:
            where_to: tuple[Any, ...] = (..., *own, *where)
            part = view[where_to]
            sink.put(part, sums.reshape(part.shape))


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
    """Native weight gradient without padding: ``[C_out, C_in / G, K...]``."""
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
