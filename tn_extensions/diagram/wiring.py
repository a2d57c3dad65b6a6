"""Wiring: courses of indices, between neighbours or along lanes above or below all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tn_extensions.diagram.place import Spot
from tn_extensions.network.network import TensorNetwork

Side = Literal["left", "right", "top", "bottom"]
Course = Literal["leg", "straight", "stacked", "above", "below"]
"""A single carrier; two in neighbouring columns; two in one column; along a lane."""


@dataclass(frozen=True, slots=True)
class Link:
    """The course of an index.

    Args:
        index: The index.
        course: Its course.
        spots: Places of its carriers.
        sides: The side at which it leaves each of them.
        output: Whether the output carries it.
    """

    index: str
    course: Course
    spots: tuple[Spot, ...]
    sides: tuple[Side, ...]
    output: bool

    @property
    def low(self) -> int:
        """Leftmost column."""
        return min(spot.column for spot in self.spots)

    @property
    def high(self) -> int:
        """Rightmost column."""
        return max(spot.column for spot in self.spots)


def wiring(network: TensorNetwork, spots: Sequence[Spot]) -> tuple[Link, ...]:
    """Choose a course for each index."""
    last = max((spot.column for spot in spots), default=0)
    kept = set(network.output_indices)
    links = []
    for index in network.indices:
        found = tuple(
            spot
            for spot, node in zip(spots, network.nodes, strict=True)
            if index in node.indices
        )
        found = tuple(sorted(found, key=lambda spot: (spot.column, spot.row)))
        links.append(_link(index, found, index in kept, last))
    return tuple(links)


def _link(index: str, spots: tuple[Spot, ...], output: bool, last: int) -> Link:
    if len(spots) == 1:
        return Link(index, "leg", spots, (_leg(spots[0], output, last),), output)
    first, second, *others = spots
    if not others and second.column == first.column + 1:
        return Link(index, "straight", spots, ("right", "left"), output)
    if not others and first.column == second.column and second.row == first.row + 1:
        return Link(index, "stacked", spots, ("bottom", "top"), output)
    if not all(spot.first for spot in spots) and all(spot.last for spot in spots):
        below: Side = "bottom"
        return Link(index, "below", spots, (below,) * len(spots), output)
    # below other boxes, go round them, on the side away from the middle
    away: tuple[Side, ...] = tuple(
        "top" if spot.first else "left" if 2 * spot.column < last else "right"
        for spot in spots
    )
    return Link(index, "above", spots, away, output)


def _leg(spot: Spot, output: bool, last: int) -> Side:
    if last == 0:
        return "right" if output else "left"
    if spot.column in (0, last):
        return "left" if spot.column == 0 else "right"
    return "bottom"
