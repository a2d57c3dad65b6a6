"""Ports: the points at which indices leave boxes, and the sizes of the boxes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tn_extensions.diagram.label import size_of
from tn_extensions.diagram.place import Spot
from tn_extensions.diagram.scene import Box, Point
from tn_extensions.diagram.wiring import Link, Side

_NAME, _LETTER, _LINE = 0.18, 0.145, 0.42
_APART: dict[Side, float] = {"left": 0.42, "right": 0.42, "top": 0.5, "bottom": 0.5}
"""Width of a letter in names and in other lines, height of a line; space of ports."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The order of links at the sides of boxes.

    Args:
        order: Numbers of links by box and side, from the left or the top.
        lanes: Numbers of links along lanes, the innermost first.
        up: Numbers of links between neighbours with a leg to the output that goes up.
    """

    order: dict[tuple[int, Side], list[int]]
    lanes: tuple[int, ...]
    up: frozenset[int]

    def size(self, spot: Spot, lines: Sequence[str], pattern: bool) -> Point:
        """Return the width and height of a box with room for its ports and text."""
        # primes do not count, so that a copy is as wide as the box it mirrors
        letters = [size_of(line.replace("'", "")) for line in lines]
        text = max(letters[0] * _NAME, *(n * _LETTER for n in letters))
        text += 0.85 if pattern else 0.5
        count = {side: len(self.order.get((spot.number, side), ())) for side in _APART}
        across = max(count["top"], count["bottom"]) * _APART["top"] + 0.2
        along = max(count["left"], count["right"]) * _APART["left"] + 0.2
        return Point(max(text, across), max(len(lines) * _LINE + 0.25, along))

    def at(self, box: Box, side: Side, link: int) -> Point:
        """Return the point at which a link ends at the border of its box."""
        ends = self.order[box.number, side]
        offset = (ends.index(link) - (len(ends) - 1) / 2) * _APART[side]
        half = Point(box.width / 2, box.height / 2)
        if side in ("top", "bottom"):
            return box.center.by(offset, half.y if side == "top" else -half.y)
        reach = half.x - box.tip * min(abs(offset) / half.y, 1)
        return box.center.by(reach if side == "right" else -reach, -offset)


def ports(links: Sequence[Link]) -> Ports:
    """Order the ends of links so that few of them cross."""
    laned = [j for j, link in enumerate(links) if link.course in ("above", "below")]
    lanes = sorted(laned, key=lambda j: (links[j].output, *_span(links[j]), j))
    up = _up(links)
    order: dict[tuple[int, Side], list[tuple[tuple[float, ...], int]]] = defaultdict(
        list
    )
    for j, link in enumerate(links):
        lane = lanes.index(j) if j in lanes else -1
        for spot, side in zip(link.spots, link.sides, strict=True):
            if side in ("left", "right"):
                key = _down_the_side(link, spot, lane, j in up)
            else:
                key = _along(link, spot, lane)
            order[spot.number, side].append(((*key, j), j))
    ordered = {end: [j for _, j in sorted(keyed)] for end, keyed in order.items()}
    return Ports(ordered, tuple(lanes), frozenset(up))


def _span(link: Link) -> tuple[int, int]:
    # links that go round boxes use the outer lanes
    rounds = sum(side in ("left", "right") for side in link.sides)
    return rounds, link.high - link.low


def _up(links: Sequence[Link]) -> set[int]:
    """Return the links whose leg goes up: the first one between two neighbours."""
    taken = set()
    up = set()
    for j, link in enumerate(links):
        if link.course == "straight" and link.output and link.spots not in taken:
            taken.add(link.spots)
            up.add(j)
    return up


def _down_the_side(link: Link, spot: Spot, lane: int, up: bool) -> tuple[float, ...]:
    if link.course != "straight":
        # first links that go round boxes, by the height of their lanes; then legs
        return (0.0, lane, 0.0) if lane >= 0 else (1.0, 0.0, 0.0)
    (other,) = (one for one in link.spots if one is not spot)
    target = (other.rows - 1) / 2 - other.row
    leg = 0.0 if not link.output else -1.0 if up else 1.0
    return (0.5, -target, leg)


def _along(link: Link, spot: Spot, lane: int) -> tuple[float, ...]:
    """Return a key that sorts lanes to the left, straight links, lanes to the right."""
    if lane < 0:
        return (0.0, 0.0)
    columns = [other.column for other in link.spots]
    mean = sum(columns) / len(columns)
    return (1.0, -lane) if mean > spot.column else (-1.0, lane)
