"""Lag structure of a pair: which values of the free index read what, relative to what.

Value ``k`` reads ``offset_k + step * t`` for ``t`` in a window. With ``offset = phase +
step * u_k``, all of them read phase ``phase`` of the operand at ``u = u_k + t``, and a
pair ``(k, k')`` contributes the product of the operand with itself at a fixed lag
``offset_k' - offset_k``, summed over a window of ``u``. Windows of one lag differ only
near the borders.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, product
from typing import Literal, NamedTuple

from tn_extensions.network.nodes import Progression


class Window(NamedTuple):
    """Positions ``u`` in ``[begin, end)`` at which a pair of values contributes."""

    first: int
    second: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class LagClass:
    """All pairs of values with the same phases and lag.

    Args:
        phase: Phase that the first of a pair reads.
        other: Phase that the second reads.
        shift: Difference of ``u`` between them.
        windows: One per pair.
    """

    phase: int
    other: int
    shift: int
    windows: tuple[Window, ...]

    @property
    def common(self) -> tuple[int, int]:
        """Positions in all windows; empty if the end does not exceed the begin."""
        return (
            max(window.begin for window in self.windows),
            min(window.end for window in self.windows),
        )


def lag_classes(progressions: Sequence[Progression]) -> tuple[LagClass, ...]:
    """Lag classes of the pairs ``first <= second`` that contribute at all."""
    classes: dict[tuple[int, int, int], list[Window]] = defaultdict(list)
    found = [(*divmod(value.offset, value.step), *value) for value in progressions]
    for number, (u, phase, a, residue, _, _, begin, end) in enumerate(found):
        for v, other, b, same, _, _, start, stop in found[number:]:
            start = start if start > begin else begin
            stop = stop if stop < end else end
            if residue == same and start < stop:
                window = Window(a, b, u + start, u + stop)
                classes[phase, other, v - u].append(window)
    return tuple(
        LagClass(*key, tuple(windows)) for key, windows in sorted(classes.items())
    )


class Member(NamedTuple):
    """A value with the partners that it meets at the lags of a group.

    Args:
        value: What the value reads.
        partners: The values it meets, by increasing lag.
        window: Positions ``u`` to sum over, as wide as the lags allow: where all of
            them lead outside of the operand, it does not matter.
    """

    value: Progression
    partners: tuple[Progression, ...]
    window: range

    @property
    def first_lag(self) -> int:
        """The smallest lag."""
        return self.partners[0].offset - self.value.offset

    @property
    def last_lag(self) -> int:
        """The largest lag."""
        return self.partners[-1].offset - self.value.offset


class Segment(NamedTuple):
    """Positions ``u`` that each of some members sums over."""

    window: range
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """Positions of one dimension, and the lags at which they are multiplied.

    Args:
        begin: First position.
        step: Distance of positions.
        count: Number of positions.
        lag: Smallest lag.
        spacing: Distance of lags.
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
        """From the first to the last position that a lag leads to."""
        span = self.step * (self.count - 1) + self.spacing * (self.lags - 1)
        return range(self.begin + self.lag, self.begin + self.lag + span + 1)

    def part(self, begin: int, size: int) -> Region:
        """Some of the positions."""
        count = min(size, self.count - begin)
        return replace(self, begin=self.begin + self.step * begin, count=count)

    def within(self, member: Member) -> slice:
        """Find a member's lags among these, from its first to its last."""
        begin = (member.first_lag - self.lag) // self.spacing
        length = (member.last_lag - member.first_lag) // self.spacing + 1
        return slice(begin, begin + length)


@dataclass(frozen=True)
class LagGroup:
    """Members of one phase with their partners at some of the lags.

    Args:
        phase: Phase that the members read.
        step: Distance of positions within the phase.
        spacing: Distance of the lags.
        members: The members.
    """

    phase: int
    step: int
    spacing: int
    members: tuple[Member, ...]

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The pieces that the ends of all windows cut them into."""
        windows = [member.window for member in self.members]
        cuts = sorted({end for w in windows for end in (w.start, w.stop)})
        return tuple(
            Segment(range(begin, end), found)
            for begin, end in pairwise(cuts)
            if (found := tuple(m for m in self.members if begin in m.window))
        )

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The segments, each at all lags from its members to their partners."""
        return tuple(map(self._region, self.segments))

    def _region(self, segment: Segment) -> Region:
        first = min(member.first_lag for member in segment.members)
        last = max(member.last_lag for member in segment.members)
        return Region(
            self.phase + self.step * segment.window.start,
            self.step,
            len(segment.window),
            first,
            self.spacing,
            (last - first) // self.spacing + 1,
        )


Lags = Literal["zero", "positive", "nonzero", "not negative", "all"]


def lag_groups(
    progressions: Sequence[Progression], size: int, lags: Lags
) -> tuple[LagGroup, ...]:
    """Group by residue and phase the values that read anything, with their partners.

    Args:
        progressions: What each value of the free index reads.
        size: Size of the operand's axis.
        lags: Which partners count.
    """
    by_residue: dict[int, list[Progression]] = defaultdict(list)
    for progression in progressions:
        by_residue[progression.residue].append(progression)
    groups = []
    for values in by_residue.values():
        values.sort(key=lambda value: value.offset)
        spacing = values[1].offset - values[0].offset if len(values) > 1 else 1
        by_phase: dict[int, list[Member]] = defaultdict(list)
        for number, value in enumerate(values):
            met = {
                "zero": [value],
                "positive": values[number + 1 :],
                "nonzero": [other for other in values if other is not value],
                "not negative": values[number:],
                "all": values,
            }[lags]
            if met and value.begin < value.end:
                window = _widest(value, met, size)
                by_phase[value.offset % value.step].append(
                    Member(value, tuple(met), window)
                )
        groups += [
            LagGroup(phase, values[0].step, spacing, tuple(members))
            for phase, members in sorted(by_phase.items())
        ]
    return tuple(groups)


_SPLIT: tuple[Lags, ...] = ("zero", "positive", "nonzero")


def positive_lags(
    dims: Sequence[tuple[Sequence[Progression], int]], split: bool
) -> Iterator[tuple[LagGroup, ...]]:
    """Groups for each dimension that hold lag zero, and of other lags one half.

    Those whose first nonzero entry is positive; the others mirror them.

    Args:
        dims: Progressions and size of the operand's axis, for each dimension.
        split: Whether to keep lags apart that are zero in some dimension. Often, only
            their windows differ between kernel positions. Without, there are fewer
            groups, with a few mirror images among the lags.

    Yields:
        A group for each dimension.
    """
    zero, positive, nonzero = (
        [lag_groups(*dim, kind) for dim in dims] for kind in _SPLIT
    )
    if not split:
        first, *others = dims
        yield from product(
            lag_groups(*first, "not negative"),
            *(lag_groups(*dim, "all") for dim in others),
        )
        return
    for leading in range(len(dims) + 1):
        later = [a + b for a, b in zip(nonzero, zero, strict=True)][leading + 1 :]
        yield from product(*zero[:leading], *positive[leading : leading + 1], *later)


def _widest(value: Progression, partners: Sequence[Progression], size: int) -> range:
    """The window of a value, extended to where all partners read outside."""
    start, phase = divmod(value.offset, value.step)
    begin, end = start + value.begin, start + value.end
    least = partners[0].offset - value.offset
    most = partners[-1].offset - value.offset
    if phase + value.step * (begin - 1) + most < 0:
        begin = 0
    if phase + value.step * end + least >= size:
        end = -((phase - size) // value.step)
    return range(begin, end)
