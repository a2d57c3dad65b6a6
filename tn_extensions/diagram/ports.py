"""Where on its border each index leaves a box, and how large that makes the box."""

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
"""Width of a letter in names and below, height of a line; between ports."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ends of links by box and side, in order from the left or the top.

    Args:
        order: Numbers of links.
        lanes: Those that run along a lane, the innermost first.
        up: Those whose leg to the output goes up, of links between neighbours.
    """

    order: dict[tuple[int, Side], list[int]]
    lanes: tuple[int, ...]
    up: frozenset[int]

    def size(self, spot: Spot, lines: Sequence[str], pattern: bool) -> Point:
        """Width and height of a box that has room for its ports and text."""
        # primes are narrow, and copies are as wide as what they mirror
        letters = [size_of(line.replace("'", "")) for line in lines]
        text = max(letters[0] * _NAME, *(n * _LETTER for n in letters))
        text += 0.85 if pattern else 0.5
        count = {side: len(self.order.get((spot.number, side), ())) for side in _APART}
        across = max(count["top"], count["bottom"]) * _APART["top"] + 0.2
        along = max(count["left"], count["right"]) * _APART["left"] + 0.2
        return Point(max(text, across), max(len(lines) * _LINE + 0.25, along))

    def at(self, box: Box, side: Side, link: int) -> Point:
        """Where a link meets the border of its box."""
        ends = self.order[box.number, side]
        offset = (ends.index(link) - (len(ends) - 1) / 2) * _APART[side]
        half = Point(box.width / 2, box.height / 2)
        if side in ("top", "bottom"):
            return box.center.by(offset, half.y if side == "top" else -half.y)
        reach = half.x - box.tip * min(abs(offset) / half.y, 1)
        return box.center.by(reach if side == "right" else -reach, -offset)


def ports(links: Sequence[Link]) -> Ports:
    """Order the ends of all links such that they cross little."""
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
    # those that go round others run outside
    rounds = sum(side in ("left", "right") for side in link.sides)
    return rounds, link.high - link.low


def _up(links: Sequence[Link]) -> set[int]:
    """Of links between the same two neighbours, the first leg goes up, others down."""
    taken = set()
    up = set()
    for j, link in enumerate(links):
        if link.course == "straight" and link.output and link.spots not in taken:
            taken.add(link.spots)
            up.add(j)
    return up


def _down_the_side(link: Link, spot: Spot, lane: int, up: bool) -> tuple[float, ...]:
    if link.course != "straight":
        # round others: the higher its lane, the further out and down; then legs
        return (0.0, lane, 0.0) if lane >= 0 else (1.0, 0.0, 0.0)
    (other,) = (one for one in link.spots if one is not spot)
    target = (other.rows - 1) / 2 - other.row
    leg = 0.0 if not link.output else -1.0 if up else 1.0
    return (0.5, -target, leg)


def _along(link: Link, spot: Spot, lane: int) -> tuple[float, ...]:
    """Lanes to the left, the lowest first, what goes straight, lanes to the right."""
    if lane < 0:
        return (0.0, 0.0)
    columns = [other.column for other in link.spots]
    mean = sum(columns) / len(columns)
    return (1.0, -lane) if mean > spot.column else (-1.0, lane)
