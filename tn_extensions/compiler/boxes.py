"""Boxes of positions together with the lags at which they are multiplied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import product
from math import prod
from typing import NamedTuple

from tn_extensions.compiler.lags import LagGroup, Member, Region

CALLS = 8
"""Operations that the sums over a box take, about."""

Key = tuple[int, ...]
"""An index for each dimension."""


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
        self.regions = [group.regions for group in groups]

    @property
    def size(self) -> int:
        """Number of boxes."""
        return prod(map(len, self.regions))

    @cached_property
    def boxes(self) -> dict[Key, list[Region]]:
        """The region of each dimension, by the numbers of the segments."""
        numbers = product(*(range(len(regions)) for regions in self.regions))
        return {
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
                        (lag - member.first_lag) // group.spacing
                        for lag, member, group in zip(
                            lags, members, self.groups, strict=True
                        )
                    ),
                    sign > 0,
                )


def number_of_sums(grids: Iterable[BoxGrid]) -> int:
    """How many lags are summed over in all boxes."""
    return sum(
        prod(sum(region.lags for region in regions) for regions in grid.regions)
        for grid in grids
    )


def padding(regions: Iterable[Region], size: int) -> tuple[int, int]:
    """Zeros that lags read beyond an operand's axis."""
    reads = [region.read for region in regions]
    low = min((read.start for read in reads), default=0)
    high = max((read.stop for read in reads), default=0)
    return max(-low, 0), max(high - size, 0)
