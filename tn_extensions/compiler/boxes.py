"""Boxes of positions together with the lags at which they are multiplied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import NamedTuple

from tn_extensions.compiler.lags import LagGroup, Member, Segment

Key = tuple[int, ...]
"""An index for each dimension."""


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
    def of(cls, group: LagGroup, segment: Segment) -> Region:
        """A segment, at all lags from its members to their partners."""
        first = min(lags_of(member)[0] for member in segment.members)
        last = max(lags_of(member)[-1] for member in segment.members)
        return cls(
            group.phase + group.step * segment.window.start,
            group.step,
            len(segment.window),
            first,
            group.spacing,
            (last - first) // group.spacing + 1,
        )

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
        """Where a member's lags are among these, from its first to its last."""
        first, last = lags_of(member)[0], lags_of(member)[-1]
        begin = (first - self.lag) // self.spacing
        return slice(begin, begin + (last - first) // self.spacing + 1)


def lags_of(member: Member) -> list[int]:
    """A member's lags, increasing."""
    return [partner.offset - member.value.offset for partner in member.partners]


class KernelPair(NamedTuple):
    """Two kernel positions that meet at a lag.

    Args:
        row: The first position.
        column: The second.
        lag: Index of the lag, counted from the first lag of the members.
        mirrored: Whether the exchanged pair is the mirror image (else it is the same).
    """

    row: Key
    column: Key
    lag: Key
    mirrored: bool


class BoxGrid:
    """A lag group for each dimension, and the boxes that their segments span.

    Args:
        groups: The lag groups.
    """

    def __init__(self, groups: Sequence[LagGroup]) -> None:
        self.groups = tuple(groups)
        self.segments = [group.segments for group in groups]
        self.regions = [
            [Region.of(group, segment) for segment in group.segments]
            for group in groups
        ]
        numbers = product(*(range(len(regions)) for regions in self.regions))
        self.boxes: dict[Key, list[Region]] = {
            key: [regions[j] for regions, j in zip(self.regions, key, strict=True)]
            for key in numbers
        }

    def pairs(self, members: Sequence[Member]) -> Iterator[KernelPair]:
        """Which kernel positions some members meet; of mirror images, one."""
        for partners in product(*(member.partners for member in members)):
            lags = [
                partner.offset - member.value.offset
                for partner, member in zip(partners, members, strict=True)
            ]
            sign = next((lag for lag in lags if lag), 0)
            if sign >= 0:
                yield KernelPair(
                    tuple(member.value.free for member in members),
                    tuple(partner.free for partner in partners),
                    tuple(
                        (lag - lags_of(member)[0]) // group.spacing
                        for lag, member, group in zip(
                            lags, members, self.groups, strict=True
                        )
                    ),
                    sign > 0,
                )


def number_of_sums(grids: Iterable[BoxGrid]) -> int:
    """How many lags are summed over in all boxes."""
    boxes = (box for grid in grids for box in grid.boxes.values())
    return sum(prod(region.lags for region in box) for box in boxes)


def padding(regions: Iterable[Region], size: int) -> tuple[int, int]:
    """Zeros that lags read beyond an operand's axis."""
    reads = [region.read for region in regions]
    low = min((read.start for read in reads), default=0)
    high = max((read.stop for read in reads), default=0)
    return max(-low, 0), max(high - size, 0)
