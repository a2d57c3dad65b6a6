"""Pair over all dimensions of one channel: its image is the kernel of a convolution.

All lag sums of a channel with itself are a convolution of the (padded) channel whose
kernel is the channel again. With samples for channels, that is one native depthwise
convolution, which is far faster than a depthwise weight gradient, and unfolds nothing.
Positions are cut into boxes as in :mod:`~tn_extensions.compiler.primitives.correlate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from math import ceil, prod

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tn_extensions.compiler.boxes import BoxGrid, Region, number_of_sums
from tn_extensions.compiler.constant import Constant
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.half import Half
from tn_extensions.compiler.lags import positive_lags
from tn_extensions.compiler.native import MOST_DIMS, depthwise_convolution
from tn_extensions.compiler.primitives.base import Lowering, Target, Tensors
from tn_extensions.compiler.sink import Sink
from tn_extensions.compiler.strided import view
from tn_extensions.network import TensorNetwork

_CHUNK_BYTES = 2**20
"""Data that is read at a time; the native kernel makes copies in its own layout."""

_TERMS = 1024
"""Terms that the native kernel adds up one by one, so that sums stay accurate."""


def depthwise(network: TensorNetwork, target: Target) -> Iterable[Lowering]:
    """Correlate each channel with itself along all dimensions."""
    half = Half.of(network)
    if half is None or half.patterns or 0 in half.sizes.values():
        return
    if not 1 <= len(half.dims) <= MOST_DIMS or any(d.free is None for d in half.dims):
        return
    if prod(half.sizes[index] for index in half.unpaired_columns) != 1:
        return
    work = DepthwiseSums(half, target)

    def run(tensors: Tensors, sink: Sink) -> None:
        work.add(tensors[half.operand.name], sink)

    steps = (
        f"{len(work.boxes)} native depthwise convolutions of {half.operand.name} with "
        "itself for half of the lags, in chunks of samples and channels",
        "add up the boxes of each pair of kernel positions by a matrix product",
    )
    yield Lowering("depthwise", steps, work.cost(), run)


class DepthwiseSums:
    """Lag sums of the channels of a half with themselves."""

    def __init__(self, half: Half, target: Target) -> None:
        self.half, self.target = half, target
        sizes = half.sizes
        self.rows = prod(sizes[index] for index in half.rows)
        self.groups = prod(sizes[index] for index in half.batch)
        dims = [(dim.progressions, sizes[dim.read]) for dim in half.dims]
        self.grids = [BoxGrid(groups) for groups in positive_lags(dims, split=False)]
        self.boxes = [box for grid in self.grids for box in grid.boxes.values()]
        self._positions = Constant(partial(_positions, half, self.grids))
        limit = min(_CHUNK_BYTES, target.budget // 8)
        self.chunk = max(1, limit // target.itemsize)

    def cost(self) -> Cost:
        """Estimate."""
        rates, itemsize = self.target.rates, self.target.itemsize
        channels = self.rows * self.groups
        total, held = Cost(), 0
        for box in self.boxes:
            lags = channels * prod(region.lags for region in box)
            flops = float(lags) * prod(region.count for region in box)
            read = channels * prod(len(region.read) for region in box)
            calls = len(list(self._pieces(box)))
            moved = itemsize * (4.0 * read + 2.0 * lags)
            seconds = flops / rates.depthwise + moved / rates.cached_copy
            seconds += (24 * calls + channels / 200) * rates.call
            total = total + Cost(flops, moved, calls, 0, seconds)
            held = max(held, min(read, max(self.chunk, read // channels)))
        lags = number_of_sums(self.grids)
        entries = prod(self.half.sizes[str(dim.free)] ** 2 for dim in self.half.dims)
        product = rates.product(self.groups, entries, lags, itemsize=itemsize)
        return (total + product).holding(4 * held + self.groups * (lags + entries))

    def _pieces(
        self, box: Sequence[Region]
    ) -> Iterator[tuple[slice, slice, list[Region]]]:
        """Rows, groups and parts of a box that are worked on at a time."""
        first, *others = box
        cuts = min(first.count, ceil(prod(region.count for region in box) / _TERMS))
        size = ceil(first.count / cuts)
        for begin in range(0, first.count, size):
            part = [first.part(begin, size), *others]
            one = prod(len(region.read) for region in part)
            groups = max(1, min(self.groups, self.chunk // one))
            rows = max(1, min(self.rows, self.chunk // (one * groups)))
            for row, group in product(
                range(0, self.rows, rows), range(0, self.groups, groups)
            ):
                yield slice(row, row + rows), slice(group, group + groups), part

    def add(self, tensor: Tensor, sink: Sink) -> None:
        """Add all lag sums of a tensor to the sink."""
        half = self.half
        order = (*half.rows, *half.batch, *(dim.read for dim in half.dims))
        x = view(tensor, half.operand, order, half.sizes)
        x = x.reshape(self.rows, self.groups, *(half.sizes[d.read] for d in half.dims))
        found = []
        for box in self.boxes:
            sums = x.new_zeros(self.groups, prod(region.lags for region in box))
            for rows, groups, part in self._pieces(box):
                sums[groups] += _correlate(x[rows, groups], part).flatten(2).sum(0)
            found.append(sums)
        positions = self._positions.like(x)
        value = torch.cat(found, dim=1) @ positions
        sink.put(sink.out, value.view(sink.out.shape))


def _correlate(x: Tensor, box: Sequence[Region]) -> Tensor:
    """Sums of each row and group over a box, ``[rows, groups, lags...]``."""
    rows, groups, *sizes = x.shape
    left = right = x
    padding: list[int] = []
    for axis, (region, size) in enumerate(zip(box, sizes, strict=True), start=2):
        own, read = region.own, region.read
        inside = range(max(read.start, 0), min(read.stop, size))
        left = left[(slice(None),) * axis + (slice(own.start, own.stop, own.step),)]
        right = right.narrow(axis, inside.start, len(inside))
        padding = [inside.start - read.start, read.stop - inside.stop, *padding]
    right = F.pad(right, padding) if any(padding) else right
    sums = depthwise_convolution(
        right.reshape(rows * groups, *right.shape[2:]),
        left.reshape(rows * groups, *left.shape[2:]),
        stride=[region.spacing for region in box],
        dilation=[region.step for region in box],
    )
    return sums.view(rows, groups, *sums.shape[1:])


def _positions(half: Half, grids: Sequence[BoxGrid]) -> NDArray[np.float64]:
    """Which lag sums each entry of the result adds up, ``[sums, K * K]``."""
    free = [str(dim.free) for dim in half.dims]
    columns = [index for index in half.columns if index in free]
    sizes = [half.sizes[index] for index in columns]
    order = [free.index(index) for index in columns]
    blocks = []
    for grid in grids:
        for key, box in grid.boxes.items():
            block = np.zeros([*(region.lags for region in box), *sizes, *sizes])
            segments = zip(grid.segments, key, strict=True)
            for members in product(
                *(found[number].members for found, number in segments)
            ):
                first = [
                    region.within(member).start
                    for region, member in zip(box, members, strict=True)
                ]
                for pair in grid.pairs(members):
                    lag = [a + b for a, b in zip(first, pair.lag, strict=True)]
                    ends = [[end[axis] for axis in order] for end in pair[:2]]
                    block[(*lag, *ends[0], *ends[1])] = 1.0
                    block[(*lag, *ends[1], *ends[0])] = 1.0
            blocks.append(block.reshape(-1, prod(sizes) ** 2))
    return np.concatenate(blocks)
