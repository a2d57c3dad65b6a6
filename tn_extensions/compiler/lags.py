"""Lags: distances at which an operand is multiplied with itself, and the positions.

Value ``k`` of an index reads ``offset_k + step * t`` for ``t`` in a window. Write
``offset_k = phase + step * u_k``: then ``k`` reads phase ``phase`` of the operand at
``u = u_k + t``. A pair ``(k, k')`` contributes the product of the operand with itself
at the lag ``offset_k' - offset_k``, summed over a window of ``u``. The contribution
depends only on phase, lag and window. Windows of one lag differ only near the borders.
Their ends cut them into segments. The segment that all of them share is the interior
of the lag.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import pairwise, product
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tn_extensions.network.nodes import Progression

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Region:
    """Positions of one dimension, and the lags at which they are multiplied.

    Args:
        begin: First position.
        step: Distance between positions.
        count: Number of positions.
        lag: Smallest lag.
        spacing: Distance between lags.
        lags: Number of lags.
    """

    begin: int
    step: int
    count: int
    lag: int
    spacing: int
    lags: int

    @property
    def own(self) -> range:
        """The positions."""
        return range(self.begin, self.begin + self.step * self.count, self.step)

    @property
    def read(self) -> range:
        """All positions from the first to the last one that a lag leads to."""
        span = self.step * (self.count - 1) + self.spacing * (self.lags - 1)
        return range(self.begin + self.lag, self.begin + self.lag + span + 1)

    def part(self, begin: int, size: int) -> Region:
        """Return at most ``size`` of the positions, from number ``begin`` on."""
        count = min(size, self.count - begin)
        return replace(self, begin=self.begin + self.step * begin, count=count)


Box = tuple[Region, ...]
"""A region for each dimension."""


def lags_of(box: Box) -> list[tuple[slice, ...]]:
    """Return the nonnegative lags of a box, in order, as parts of the grid of its lags.

    A lag is nonnegative if it is zero or its first nonzero entry is positive.
    """
    zeros: tuple[slice, ...] = ()
    parts = []
    for axis, region in enumerate(box):
        lags = range(
            region.lag, region.lag + region.spacing * region.lags, region.spacing
        )
        negative = sum(lag < 0 for lag in lags)
        zero = 0 in lags
        last = axis == len(box) - 1
        others = (slice(None),) * (len(box) - axis - 1)
        start = negative + (zero and not last)
        if start < region.lags:
            parts.append((*zeros, slice(start, None), *others))
        if not zero:
            break
        zeros = (*zeros, slice(negative, negative + 1))
    return parts[::-1]


def first_lag(box: Box) -> int:
    """Count the lags of a box that come before the nonnegative ones."""
    return prod(region.lags for region in box) - number_of_lags(box)


def number_of_lags(box: Box) -> int:
    """Count the nonnegative lags of a box; the others mirror them."""
    counts = [region.lags for region in box]
    return sum(
        prod(
            len(range(*part.indices(count)))
            for part, count in zip(parts, counts, strict=True)
        )
        for parts in lags_of(box)
    )


class Window(NamedTuple):
    """Positions ``phase + step * u``, ``begin <= u < end``, for products at a lag."""

    phase: int
    lag: int
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.end - self.begin


def segments(windows: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cut windows ``[begin, end)`` into segments, at the ends of all windows."""
    found = list(windows)
    cuts = sorted({end for window in found for end in window})
    return [
        (begin, end)
        for begin, end in pairwise(cuts)
        if any(first <= begin < last for first, last in found)
    ]


class LagDim:
    """Lags of one dimension.

    Args:
        progressions: The positions that each value of the free index reads.
        size: Size of the operand's axis.

    Attributes:
        windows: The distinct windows of all pairs of values.
        window_of: Number of each pair's window; -1 if the pair contributes nothing.
        segments: The segments of all lags.
        contains: Whether a window contains a segment, ``[windows, segments]``.
        interiors: For each window, the number of its lag's interior among the segments;
            -1 if the lag has none.
    """

    def __init__(self, progressions: tuple[Progression, ...], size: int) -> None:
        self.size, self.step = size, progressions[0].step
        self.window_of = np.full((len(progressions), len(progressions)), -1)
        numbers: dict[Window, int] = {}
        read = [(*divmod(value.offset, self.step), value) for value in progressions]
        for (u, phase, one), (_, _, other) in product(read, repeat=2):
            begin, end = max(one.begin, other.begin), min(one.end, other.end)
            if one.residue == other.residue and begin < end:
                lag = other.offset - one.offset
                window = Window(phase, lag, u + begin, u + end)
                number = numbers.setdefault(window, len(numbers))
                self.window_of[one.free, other.free] = number
        self.windows = list(numbers)
        by_lag: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for phase, lag, *ends in self.windows:
            by_lag[phase, lag].append((ends[0], ends[1]))
        self.segments = [
            Window(*key, *ends)
            for key, found in by_lag.items()
            for ends in segments(found)
        ]
        windows, cut = (
            np.array(part, dtype=np.int64).reshape(-1, 4)
            for part in (self.windows, self.segments)
        )
        whole = windows[:, None]
        self.contains: Booleans = np.logical_and.reduce(
            [
                (whole[..., :2] == cut[:, :2]).all(-1),
                whole[..., 2] <= cut[:, 2],
                whole[..., 3] >= cut[:, 3],
            ]
        )
        self._common = {
            key: (max(begin for begin, _ in found), min(end for _, end in found))
            for key, found in by_lag.items()
        }
        numbers = {segment: number for number, segment in enumerate(self.segments)}
        self.interiors = [
            numbers.get(Window(*w[:2], *self._common[w[:2]]), -1) for w in self.windows
        ]

    def regions(self, half: bool) -> list[Region]:
        """Return a region per phase: the positions in the interiors of all its lags.

        Where a lag leads outside of the operand, products are zero. Interiors are
        extended by such positions.

        Args:
            half: Whether to leave out negative lags.

        Returns:
            The regions, with these lags.
        """
        phases: dict[int, list[Window]] = defaultdict(list)
        for (phase, lag), ends in self._common.items():
            if ends[0] < ends[1] and (lag >= 0 or not half):
                phases[phase].append(self._grown(Window(phase, lag, *ends)))
        regions = []
        for phase, windows in phases.items():
            begin = max(window.begin for window in windows)
            count = min(window.end for window in windows) - begin
            first, *more = sorted(window.lag for window in windows)
            spacing = gcd(*(lag - first for lag in more)) or 1
            lags = (more[-1] - first) // spacing + 1 if more else 1
            if count > 0:
                start = phase + self.step * begin
                regions.append(Region(start, self.step, count, first, spacing, lags))
        return regions

    def _grown(self, window: Window) -> Window:
        phase, lag, begin, end = window
        if phase + self.step * (begin - 1) + lag < 0:
            begin = 0
        if phase + self.step * end + lag >= self.size:
            end = -((phase - self.size) // self.step)
        return Window(phase, lag, begin, end)

    def inside(self, region: Region) -> dict[int, tuple[int, range]]:
        """Find the interiors whose lags are those of a region.

        Args:
            region: The region.

        Returns:
            By number of the interior, the number of its lag in the region, and its
            values of ``u`` within the region.
        """
        phase, first = region.begin % self.step, region.begin // self.step
        found = {}
        for number in {*self.interiors} - {-1}:
            segment = self.segments[number]
            at, rest = divmod(segment.lag - region.lag, region.spacing)
            if segment.phase == phase and not rest and 0 <= at < region.lags:
                begin = max(first, segment.begin)
                end = min(first + region.count, segment.end)
                found[number] = (at, range(begin, max(begin, end)))
        return found


lag_dim = lru_cache(maxsize=256)(LagDim)
"""The lags of a dimension, cached."""


class Strip(NamedTuple):
    """Pairs of positions in the padded operand whose products are summed."""

    first: Integers
    second: Integers


class LagGrid:
    """Nonnegative lags of several dimensions; the others are their mirror images.

    Most positions are in boxes, over which all lags of a phase are summed. Positions of
    a combination of segments that are in no box form a strip.

    Args:
        dims: The dimensions.

    Attributes:
        boxes: The boxes.
        padding: For each dimension, the numbers of zeros before and after the operand
            that lags of the boxes read.
        number_of_sums: Number of lags of all boxes, plus one for sums in no box.
    """

    def __init__(self, dims: Sequence[LagDim]) -> None:
        self.dims = tuple(dims)
        regions = (dim.regions(half=not axis) for axis, dim in enumerate(self.dims))
        self.boxes: list[Box] = list(product(*regions))
        self.padding = []
        for axis, dim in enumerate(self.dims):
            reads = [box[axis].read for box in self.boxes]
            low = min((read.start for read in reads), default=0)
            high = max((read.stop for read in reads), default=0)
            self.padding.append((max(-low, 0), max(high - dim.size, 0)))
        self._place()
        left = self._left > 0
        self._numbers = np.argwhere(left)[np.argsort(-self._left[left], kind="stable")]
        # combinations of windows; those that contain a strip come first
        touched = left
        for axis, dim in enumerate(self.dims):
            moved = np.tensordot(dim.contains, touched, (1, axis))
            touched = np.moveaxis(moved, 0, axis)
        kept = _is_kept([[w.lag for w in dim.windows] for dim in self.dims])
        first, others = np.argwhere(kept & touched), np.argwhere(kept & ~touched)
        self._touched, self._windows = first, np.concatenate([first, others])

    def _place(self) -> None:
        """Find the place of each combination of segments among the boxes' sums."""
        shape = [len(dim.segments) for dim in self.dims]
        kept = _is_kept([[s.lag for s in dim.segments] for dim in self.dims])
        self._places = np.zeros(shape, dtype=np.int64)
        self._holders = np.full(shape, -1)
        held = np.zeros(shape, dtype=np.int64)
        end = 1  # place zero is for sums in no box
        for number, box in enumerate(self.boxes):
            found = [dim.inside(r) for dim, r in zip(self.dims, box, strict=True)]
            if all(found):
                where = np.ix_(*(list(part) for part in found))
                lags = np.ix_(*([at for at, _ in part.values()] for part in found))
                at = np.ravel_multi_index(lags, [r.lags for r in box])
                sizes = [[len(u) for _, u in part.values()] for part in found]
                new = kept[where]
                self._places[where] = np.where(new, end + at - first_lag(box), 0)
                self._holders[where] = np.where(new, number, -1)
                held[where] = np.where(new, _outer(sizes), 0)
            end += number_of_lags(box)
        self.number_of_sums = end
        total = _outer([[s.size for s in dim.segments] for dim in self.dims])
        self._left = kept * (total - held)

    @property
    def sizes_of_strips(self) -> list[int]:
        """Number of pairs of positions of each strip, largest first."""
        return [int(self._left[tuple(number)]) for number in self._numbers]

    def strip(self, number: int) -> Strip:
        """Return the pairs of positions of a strip."""
        at = tuple(map(int, self._numbers[number]))
        holder = int(self._holders[at])
        first, second, inside = [], [], []
        for axis, (dim, one) in enumerate(zip(self.dims, at, strict=True)):
            segment = dim.segments[one]
            u = np.arange(segment.begin, segment.end)
            own = segment.phase + dim.step * u + self.padding[axis][0]
            first.append(own)
            second.append(own + segment.lag)
            held = range(0)
            if holder >= 0:
                _, held = dim.inside(self.boxes[holder][axis])[one]
            inside.append((u >= held.start) & (u < held.stop))
        left = ~_outer(inside)
        shape = [
            dim.size + sum(pad)
            for dim, pad in zip(self.dims, self.padding, strict=True)
        ]
        return Strip(
            np.ravel_multi_index(np.ix_(*first), shape)[left],
            np.ravel_multi_index(np.ix_(*second), shape)[left],
        )

    @property
    def number_of_windows(self) -> int:
        """Number of combinations of windows, each with a sum of its own."""
        return len(self._windows)

    @property
    def number_of_additions(self) -> tuple[int, int]:
        """Number of windows that contain a strip, and number of strips."""
        return len(self._touched), len(self._numbers)

    @property
    def additions(self) -> NDArray[np.float64]:
        """Matrix of zeros and ones: whether a window contains a strip."""
        result = np.ones(self.number_of_additions)
        for axis, dim in enumerate(self.dims):
            where = np.ix_(self._touched[:, axis], self._numbers[:, axis])
            result *= dim.contains[where]
        return result

    @property
    def places(self) -> Integers:
        """Place of each window's interior among the sums of the boxes; zero without."""
        result = np.full(len(self._windows), True)
        numbers = []
        for axis, dim in enumerate(self.dims):
            numbers.append(
                np.array(dim.interiors, dtype=np.int64)[self._windows[:, axis]]
            )
            result &= numbers[-1] >= 0
        return np.where(result, self._places[tuple(numbers)], 0)

    @property
    def entries(self) -> Integers:
        """Window of each pair of kernel positions, ``[k1, k2, ..., k1', k2', ...]``.

        Windows are numbered from one, then their mirror images in the same order. Zero
        means that a pair contributes nothing.
        """
        # entry -1 is for pairs that contribute nothing
        shape = [len(dim.windows) + 1 for dim in self.dims]
        order = np.zeros(shape, dtype=np.int64)
        end = len(self._windows) + 1
        order[tuple(self._windows.T)] = np.arange(1, end)
        count = len(self.dims)
        axes = [[axis, axis + count] for axis in range(count)]
        pairs = []
        for dim, own in zip(self.dims, axes, strict=True):
            others = [axis for axis in range(2 * count) if axis not in own]
            pairs.append(np.expand_dims(dim.window_of, others))
        mirrored = [np.swapaxes(p, *own) for p, own in zip(pairs, axes, strict=True)]
        one, other = (
            order[tuple(np.broadcast_arrays(*numbers))] for numbers in (pairs, mirrored)
        )
        return np.where(one > 0, one, np.where(other > 0, other + end, 0))


def _is_kept(lags: Sequence[Sequence[int]]) -> Booleans:
    """Tell which combinations of lags are nonnegative, see :func:`lags_of`."""
    signs = np.zeros([1] * len(lags), dtype=np.int64)
    for axis, values in enumerate(lags):
        shape = [-1 if other == axis else 1 for other in range(len(lags))]
        sign = np.sign(np.array(values, dtype=np.int64)).reshape(shape)
        signs = np.where(signs == 0, sign, signs)
    return np.asarray(np.broadcast_to(signs >= 0, [len(values) for values in lags]))


def _outer(factors: Sequence[Sequence[int] | Booleans]) -> NDArray[Any]:
    """Multiply one entry of each factor, for all combinations of entries."""
    return reduce(np.multiply.outer, map(np.asarray, factors))
