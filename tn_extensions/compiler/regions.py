"""Boxes of positions together with the lags at which they are multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tn_extensions.compiler.lags import LagGroup, Member


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

    @classmethod
    def of(cls, group: LagGroup, members: Sequence[Member], window: range) -> Region:
        """A window, at all lags from members to partners."""
        ends = [
            (
                m.partners[0].offset - m.value.offset,
                m.partners[-1].offset - m.value.offset,
            )
            for m in members
        ]
        first, last = min(low for low, _ in ends), max(high for _, high in ends)
        return cls(
            group.phase + group.step * window.start,
            group.step,
            len(window),
            first,
            group.spacing,
            (last - first) // group.spacing + 1,
        )

    @property
    def own(self) -> slice:
        """The positions."""
        return slice(self.begin, self.begin + self.step * self.count, self.step)

    @property
    def read(self) -> range:
        """From the first to the last position that a lag leads to."""
        span = self.step * (self.count - 1) + self.spacing * (self.lags - 1)
        return range(self.begin + self.lag, self.begin + self.lag + span + 1)

    def part(self, begin: int, size: int) -> Region:
        """Some of the positions."""
        count = min(size, self.count - begin)
        return replace(self, begin=self.begin + self.step * begin, count=count)

    def within(self, other: Region) -> slice:
        """Where the lags are among those of a region with more of them."""
        begin = (self.lag - other.lag) // self.spacing
        return slice(begin, begin + self.lags)


def interior(choice: Sequence[LagGroup]) -> list[Region]:
    """What all members sum over, at all of their lags."""
    return [Region.of(group, group.members, group.common) for group in choice]


def first_sign(choice: Sequence[LagGroup]) -> int:
    """Sign of the first lag that is not zero; zero if all are."""
    return next((group.sign for group in choice if group.sign), 0)


def padding(groups: Sequence[LagGroup], size: int) -> tuple[int, int]:
    """Zeros that lags read beyond an operand's axis."""
    reads = [interior([group])[0].read for group in groups]
    for group in groups:
        reads += [Region.of(group, [m], m.window).read for m in group.members]
    low = min((read.start for read in reads), default=0)
    high = max((read.stop for read in reads), default=0)
    return max(-low, 0), max(high - size, 0)
