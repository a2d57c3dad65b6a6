"""Routes: the lines that wires follow between boxes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tn_extensions.diagram import label
from tn_extensions.diagram.place import Spot
from tn_extensions.diagram.ports import Ports
from tn_extensions.diagram.scene import Box, Label, Path, Point, Wire
from tn_extensions.diagram.wiring import Link, Side

_LEG, _DROP, _LANES, _LANE, _CHANNEL = 0.6, 0.45, 0.75, 0.5, 0.25
"""Lengths of legs to the side and down; space below lanes, between lanes, channels."""

_OUT = {"left": (-1, 0), "right": (1, 0), "top": (0, 1), "bottom": (0, -1)}


@dataclass(frozen=True)
class Router:
    """A router, which draws each link from port to port.

    Args:
        boxes: The boxes of the nodes.
        spots: The places of the nodes.
        ports: The order of the links' ends.
        links: The links.
    """

    boxes: Sequence[Box]
    spots: Sequence[Spot]
    ports: Ports
    links: Sequence[Link]

    def wires(self) -> tuple[Wire, ...]:
        """Draw a wire for each link."""
        draw = {"leg": self._leg, "straight": self._straight, "stacked": self._stacked}
        wires = {
            number: draw[link.course](number, link)
            for number, link in enumerate(self.links)
            if link.course in draw
        }
        # legs to the output must not touch, so pass on the legs of earlier lanes
        legs: list[float] = []
        for number in self.ports.lanes:
            wires[number] = wire = self._lane(number, self.links[number], legs)
            legs += [wire.leg.x] if wire.leg else []
        return _apart(wires[number] for number in range(len(self.links)))

    def _wire(
        self,
        number: int,
        link: Link,
        paths: Sequence[Path],
        at: Point,
        dots: Sequence[Point] = (),
        leg: Point | None = None,
        ones: Point | None = None,
    ) -> Wire:
        numbers = (spot.number for spot in link.spots)
        ends = tuple(zip(numbers, self._ends(number, link), strict=True))
        text = Label(f"${label.math(link.index)}$", at)
        kind = label.family(link.index)
        return Wire(link.index, kind, ends, tuple(paths), tuple(dots), text, leg, ones)

    def _ends(self, number: int, link: Link) -> list[Point]:
        return [
            self.ports.at(self.boxes[spot.number], side, number)
            for spot, side in zip(link.spots, link.sides, strict=True)
        ]

    def _leg(self, number: int, link: Link) -> Wire:
        """Draw a wire from the only carrier to the output, or to a vector of ones."""
        (start,), (side,), (spot,) = self._ends(number, link), link.sides, link.spots
        channels = len(self._channels(spot.column, side))
        aside = side in ("left", "right")
        length = _LEG + _CHANNEL * channels if aside else _DROP
        dx, dy = _OUT[side]
        if link.output:
            tip = start.by(dx * length, dy * length)
            return self._wire(
                number, link, [(start, tip)], self._beyond(link, tip, side), leg=tip
            )
        length += 0.4
        tip = start.by(dx * length, dy * length)
        middle = start.by(dx * length / 2, dy * length / 2)
        end = tip.by(dx * 0.16, dy * 0.16)
        return self._wire(number, link, [(start, tip)], middle, ones=end)

    def _beyond(self, link: Link, tip: Point, side: Side) -> Point:
        """Return the position of a label beyond the tip of a leg."""
        dx, dy = _OUT[side]
        room = 0.1 + 0.07 * label.size_of(label.math(link.index))
        return tip.by(dx * room, dy * 0.2)

    def _straight(self, number: int, link: Link) -> Wire:
        start, end = self._ends(number, link)
        if not link.output:
            patterns = [self.boxes[s.number].kind != "operand" for s in link.spots]
            # lines fan out towards patterns, which leaves more room for labels
            part = 0.5 + 0.3 * (patterns[1] - patterns[0])
            return self._wire(number, link, [(start, end)], _between(start, end, part))
        up = number in self.ports.up
        side: Side = "top" if up else "bottom"
        dot = _between(start, end, self._part(number, link, up))
        tip = dot.by(0.0, _OUT[side][1] * _LEG)
        paths = [(start, dot, end), (dot, tip)]
        return self._wire(
            number, link, paths, self._beyond(link, tip, side), [dot], tip
        )

    def _part(self, number: int, link: Link, up: bool) -> float:
        """Return the start of a leg to the output, as a part of the line's length."""
        peers = [
            j
            for j, other in enumerate(self.links)
            if (other.course, other.spots) == (link.course, link.spots)
            and other.output
            and (j in self.ports.up) == up
        ]
        return (peers.index(number) + 1) / (len(peers) + 1)

    def _stacked(self, number: int, link: Link) -> Wire:
        start, end = self._ends(number, link)
        if not link.output:
            middle = _between(start, end, 0.5)
            return self._wire(number, link, [(start, end)], middle)
        middle = _between(start, end, self._part(number, link, up=False))
        columns = max(spot.column for spot in self.spots)
        side: Side = "left" if 2 * link.low <= columns and columns else "right"
        reach = self.boxes[link.spots[0].number].width / 2 + _LEG
        x = self.boxes[link.spots[0].number].center.x + _OUT[side][0] * reach
        tip = Point(x, middle.y)
        paths = [(start, middle, end), (middle, tip)]
        return self._wire(
            number, link, paths, self._beyond(link, tip, side), [middle], tip
        )

    def _lane(self, number: int, link: Link, legs: Sequence[float]) -> Wire:
        """Draw a line above or below all boxes, with a riser from each carrier."""
        above = link.course == "above"
        y = self._lane_height(number, above)
        paths = [
            self._rise(number, spot, side, port, y)
            for spot, side, port in zip(
                link.spots, link.sides, self._ends(number, link), strict=True
            )
        ]
        risers = [path[-1].x for path in paths]
        low, high = min(risers), max(risers)
        dots = [Point(x, y) for x in risers if low < x < high]
        dots += self._joined(paths)
        # draw the outermost risers and the lane as one line, for round corners
        first, last = paths[risers.index(low)], paths[risers.index(high)]
        lines = [path for path in paths if path not in (first, last)]
        lines.append((*first, *reversed(last)) if low < high else first)
        if not link.output:
            at = _free(low, high, risers, 0.3)
            return self._wire(number, link, lines, Point(at, y), dots)
        x = _free(low, high, [*risers, *legs], 0.25)
        end: Side = "top" if above else "bottom"
        beyond = self._lane_height(self._outermost(link), above) + _OUT[end][1] * 0.45
        dot, tip = Point(x, y), Point(x, beyond)
        at_end = self._beyond(link, tip, end)
        lines.append((dot, tip))
        return self._wire(number, link, lines, at_end, [*dots, dot], tip)

    def _rise(self, number: int, spot: Spot, side: Side, port: Point, y: float) -> Path:
        """Return the line from a port to a lane, round boxes that are in the way."""
        if side not in ("left", "right"):
            return port, Point(port.x, y)
        rank = self._channels(spot.column, side).index(number)
        x = self._edge(spot.column, side) + _OUT[side][0] * _CHANNEL * (rank + 1)
        return port, Point(x, port.y), Point(x, y)

    def _joined(self, paths: Sequence[Path]) -> list[Point]:
        """Return the points at which risers join the riser of a lower carrier."""
        return [
            path[1]
            for path in paths
            if len(path) == 3
            and any(
                other[-1].x == path[-1].x and other[0].y < path[0].y
                for other in paths
                if other is not path
            )
        ]

    def _outermost(self, link: Link) -> int:
        return [j for j in self.ports.lanes if self.links[j].course == link.course][-1]

    def _lane_height(self, number: int, above: bool) -> float:
        course = "above" if above else "below"
        lanes = [j for j in self.ports.lanes if self.links[j].course == course]
        tops = [abs(box.center.y) + box.height / 2 for box in self.boxes]
        inner = any(
            link.course == "leg" and link.sides == ("bottom",) for link in self.links
        )
        clear = _LANES + (0.6 if inner and not above else 0.25)
        height = max(tops) + clear + _LANE * lanes.index(number)
        return height if above else -height

    def _channels(self, column: int, side: Side) -> list[int]:
        """Return the links that go round boxes of a column, the innermost first."""
        return [
            j
            for j in self.ports.lanes
            if any(
                spot.column == column and s == side
                for spot, s in zip(
                    self.links[j].spots, self.links[j].sides, strict=True
                )
            )
        ]

    def _edge(self, column: int, side: Side) -> float:
        ends = [
            self.boxes[spot.number].center.x
            + _OUT[side][0] * self.boxes[spot.number].width / 2
            for spot in self.spots
            if spot.column == column
        ]
        return min(ends) if side == "left" else max(ends)


def _apart(wires: Iterable[Wire]) -> tuple[Wire, ...]:
    """Move labels along straight lines if they cover labels of earlier wires."""
    placed: list[Wire] = []
    for wire in wires:
        path = wire.paths[0]
        if wire.leg is None and wire.ones is None and wire.paths == (path[:2],):
            spots = (_between(path[0], path[1], part) for part in _PARTS)
            given = wire.label.at
            free = (at for at in (given, *spots) if _clear(wire, at, placed))
            at = next(free, given)
            wire = replace(wire, label=replace(wire.label, at=at))
        placed.append(wire)
    return tuple(placed)


_PARTS = (0.35, 0.65, 0.25, 0.75, 0.15, 0.85)
"""Other places for a label, as parts of the line's length."""


def _clear(wire: Wire, spot: Point, placed: Iterable[Wire]) -> bool:
    """Tell whether a label at a position covers none of the others."""
    width = label.size_of(wire.label.text)
    for other in placed:
        wide = 0.07 * (width + label.size_of(other.label.text))
        dx, dy = spot.x - other.label.at.x, spot.y - other.label.at.y
        if abs(dx) < wide and abs(dy) < 0.24:
            return False
    return True


def _between(start: Point, end: Point, part: float) -> Point:
    return start.by((end.x - start.x) * part, (end.y - start.y) * part)


def _free(low: float, high: float, taken: Sequence[float], apart: float) -> float:
    """Find a position between two others, near the middle, not close to taken ones."""
    middle = (low + high) / 2
    for step in range(int((high - low) / 0.9)):
        for x in (middle + 0.45 * step, middle - 0.45 * step):
            if all(abs(x - other) >= apart for other in taken):
                return x
    return (low + middle) / 2
