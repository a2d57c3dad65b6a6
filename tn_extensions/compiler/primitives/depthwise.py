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
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.boxes import CALLS
from tn_extensions.compiler.candidate import (
    MOST_CALLS,
    Candidate,
    Target,
    Tensors,
    priced,
)
from tn_extensions.compiler.constant import Constant
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.half import Half, PairedDim
from tn_extensions.compiler.lags import LagGroup, Lags, Region, lag_groups
from tn_extensions.compiler.native import MOST_DIMS, depthwise_convolution
from tn_extensions.compiler.strided import view
from tn_extensions.network import TensorNetwork

_CHUNK_BYTES = 2**20
"""Data that is read at a time; the native kernel makes copies in its own layout."""

_LAGS: tuple[Lags, ...] = ("not negative", "all", "all")

_TERMS = 1024
"""Terms that the native kernel adds up one by one, so that sums stay accurate."""


def depthwise(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Correlate each channel with itself along all dimensions."""
    half = Half.of(network)
    if half is None or half.patterns or 0 in half.sizes.values():
        return
    if not half.has_lags or len(half.dims) > MOST_DIMS:
        return
    if prod(half.sizes[index] for index in half.unpaired_columns) != 1:
        return
    # beyond that, a dimension's lags alone are too many to be assigned to positions
    if any(len(dim.progressions) ** 2 > MOST_CALLS for dim in half.dims):
        return
    work = DepthwiseSums(half, target)
    if CALLS * prod(len(dim.segments) for dim in work.dims) > MOST_CALLS:
        return

    def run(tensors: Tensors, into: Accumulator) -> None:
        work.add(tensors[half.operand.name], into)

    steps = (
        f"{len(work.boxes)} native depthwise convolutions of {half.operand.name} with "
        "itself for half of the lags, in chunks of samples and channels",
        "add up the boxes of each pair of kernel positions, dimension by dimension",
    )
    yield priced("depthwise", steps, work.cost(), run)


class DepthwiseSums:
    """Lag sums of the channels of a half with themselves."""

    def __init__(self, half: Half, target: Target) -> None:
        self.half, self.target = half, target
        sizes = half.sizes
        self.rows = prod(sizes[index] for index in half.rows)
        self.groups = prod(sizes[index] for index in half.batch)
        # of all lags, one half: those that are not negative in the first dimension
        self.dims = [
            LagAxis(lag_groups(dim.progressions, sizes[dim.read], lags), dim)
            for dim, lags in zip(half.dims, _LAGS, strict=False)
        ]
        limit = min(_CHUNK_BYTES, target.budget // 8)
        self.chunk = max(1, limit // target.itemsize)

    @property
    def boxes(self) -> list[tuple[Segmented, ...]]:
        """The boxes that the segments of all dimensions span."""
        return list(product(*(dim.segments for dim in self.dims)))

    def cost(self) -> Cost:
        """Estimate."""
        rates, itemsize = self.target.rates, self.target.itemsize
        channels = self.rows * self.groups
        total, held = Cost(), 0
        for box in self.boxes:
            regions = [segment.region for segment in box]
            lags = prod(region.lags for region in regions)
            flops = float(channels * lags) * prod(region.count for region in regions)
            # many lags keep the kernel's registers busy
            rate = rates.depthwise * min(3.0, max(1.0, lags / 25))
            read = channels * prod(len(region.read) for region in regions)
            size, groups, rows = self._piece(regions)
            calls = ceil(regions[0].count / size)
            calls *= ceil(self.groups / groups) * ceil(self.rows / rows)
            moved = itemsize * (4.0 * read + 2.0 * channels * lags)
            seconds = flops / rate + moved / rates.cached_copy
            seconds += (34 * calls + channels / 150) * rates.call
            total = total + Cost(flops, moved, calls, 0, seconds)
            held = max(held, min(read, max(self.chunk, read // channels)))
        sums = prod(dim.shape[0] for dim in self.dims)
        entries = prod(dim.shape[1] for dim in self.dims)
        added = rates.move(self.groups * (sums + 2 * entries), itemsize).times(3)
        held = 4 * held + self.groups * (sums + 3 * entries)
        # what says which positions meet at which lag
        held += sum(prod(dim.shape) for dim in [self.dims[0], *self.dims])
        return (total + added).holding(held)

    def _piece(self, box: Sequence[Region]) -> tuple[int, int, int]:
        """First positions, groups and rows of a box that are worked on at a time."""
        first, *others = box
        cuts = min(first.count, ceil(prod(region.count for region in box) / _TERMS))
        size = ceil(first.count / cuts)
        one = prod(len(region.read) for region in [first.part(0, size), *others])
        groups = max(1, min(self.groups, self.chunk // one))
        return size, groups, max(1, min(self.rows, self.chunk // (one * groups)))

    def add(self, tensor: Tensor, into: Accumulator) -> None:
        """Add all lag sums of a tensor to the accumulator."""
        half = self.half
        order = (*half.rows, *half.batch, *(dim.read for dim in half.dims))
        x = view(tensor, half.operand, order, half.sizes)
        x = x.reshape(self.rows, self.groups, *(half.sizes[d.read] for d in half.dims))
        sums = x.new_zeros(self.groups, *(dim.shape[0] for dim in self.dims))
        for box in self.boxes:
            first, *others = regions = [segment.region for segment in box]
            size, groups, rows = self._piece(regions)
            target = sums[(slice(None), *(segment.where for segment in box))]
            for begin, row, group in product(
                range(0, first.count, size),
                range(0, self.rows, rows),
                range(0, self.groups, groups),
            ):
                part = x[row : row + rows, group : group + groups]
                found = _correlate(part, [first.part(begin, size), *others])
                target[group : group + groups] += found.sum(0)
        into.put(into.out, self._assemble(sums).reshape(into.out.shape))

    def _assemble(self, sums: Tensor) -> Tensor:
        """From lags to pairs of kernel positions, ``[G, k1, k2, ..., k1', ...]``."""
        first, *others = self.dims
        for dim in others:  # appends k, k'
            sums = torch.tensordot(sums, dim.meetings.like(sums), dims=([2], [0]))
        number = 2 * len(others)
        exchanged = sums.permute(0, 1, *(axis ^ 1 for axis in range(2, 2 + number)))
        result = torch.tensordot(sums, first.meetings.like(sums), dims=([1], [0]))
        mirrored = first.mirrored.like(sums)
        result = result + torch.tensordot(exchanged, mirrored, dims=([1], [0]))
        free = [str(dim.free) for dim in self.half.dims]
        columns = [free.index(j) for j in self.half.columns if j in free]
        axes = [number + 1 if axis == 0 else 2 * axis - 1 for axis in columns]
        return result.permute(0, *axes, *(axis + 1 for axis in axes))


class Segmented(NamedTuple):
    """A segment of a dimension, and where its lags are among those of all segments."""

    region: Region
    where: slice


class LagAxis:
    """The lags of all segments of a dimension, one after the other.

    ``meetings`` says which kernel positions meet at which of them, ``[lags, k, k']``,
    and ``mirrored`` likewise at the mirror images, without lag zero.

    Args:
        groups: Lag groups.
        dim: The dimension.
    """

    def __init__(self, groups: Sequence[LagGroup], dim: PairedDim) -> None:
        self.segments: list[Segmented] = []
        self._groups, self._size = tuple(groups), len(dim.progressions)
        end = 0
        for group in groups:
            for region in group.regions:
                self.segments.append(Segmented(region, slice(end, end + region.lags)))
                end += region.lags
        self.shape = (end, self._size**2)
        self.meetings = Constant(partial(self._ones, mirrored=False))
        self.mirrored = Constant(partial(self._ones, mirrored=True))

    def _ones(self, mirrored: bool) -> NDArray[np.float64]:
        result = np.zeros((self.shape[0], self._size, self._size))
        for at, lag, row, column in self._pairs():
            if not mirrored:
                result[at, row, column] = 1.0
            elif lag:
                result[at, column, row] = 1.0
        return result

    def _pairs(self) -> Iterator[tuple[int, int, int, int]]:
        """Number of the lag, lag, and the kernel positions that meet at it."""
        segments = [segment for group in self._groups for segment in group.segments]
        for segment, (region, where) in zip(segments, self.segments, strict=True):
            for member in segment.members:
                for partner in member.partners:
                    lag = partner.offset - member.value.offset
                    at = where.start + (lag - region.lag) // region.spacing
                    yield at, lag, member.value.free, partner.free


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
