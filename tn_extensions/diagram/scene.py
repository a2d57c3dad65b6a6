"""Scenes: boxes, wires, shades and text of a picture, for any backend.

Coordinates are in centimetres, with y upwards. Labels are plain text or TeX formulas
that matplotlib understands, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Kind = Literal["operand", "pattern", "pair"]
"""Shapes of a node: box, hexagon, hexagon with two outlines."""

Family = Literal["batch", "group", "channel", "spatial"]
"""The kind of things that an index counts; it determines the colour of wires."""


COLORS: dict[Family | Kind | Literal["shade"], str] = {
    "batch": "7A3E9D",
    "group": "B8621B",
    "channel": "1F5FA8",
    "spatial": "2B2B2B",
    "operand": "FDE9C9",
    "pattern": "DCECF7",
    "pair": "DCECF7",
    "shade": "EFEFEF",
}
"""Hexadecimal colours of wires, by family, and of filled shapes."""


class Point(NamedTuple):
    """A position."""

    x: float
    y: float

    def by(self, x: float, y: float) -> Point:
        """Return the position, moved so much to the right and up."""
        return Point(self.x + x, self.y + y)


Path = tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """A node of the network.

    Args:
        number: Position of the node in ``network.nodes``.
        kind: Shape of the box.
        center: Center of the box.
        width: Width, from tip to tip.
        height: Height.
        lines: Lines of text in TeX; the first one is the name.
    """

    number: int
    kind: Kind
    center: Point
    width: float
    height: float
    lines: tuple[str, ...]

    @property
    def outline(self) -> Path:
        """Corners, counterclockwise."""
        w, h, tip = self.width / 2, self.height / 2, self.tip
        if self.kind == "operand":
            corners = [(-w, -h), (w, -h), (w, h), (-w, h)]
        else:
            corners = [(tip - w, -h), (w - tip, -h), (w, 0.0)]
            corners += [(w - tip, h), (tip - w, h), (-w, 0.0)]
        return tuple(self.center.by(x, y) for x, y in corners)

    @property
    def tip(self) -> float:
        """Horizontal distance from the tips to the corners."""
        return 0.0 if self.kind == "operand" else min(0.22, self.width / 4)

    def contains(self, point: Point, margin: float = 0.0) -> bool:
        """Tell whether a point is within the bounds of the outline, less a margin."""
        dx, dy = abs(point.x - self.center.x), abs(point.y - self.center.y)
        return dx < self.width / 2 - margin and dy < self.height / 2 - margin


@dataclass(frozen=True, slots=True)
class Label:
    """Text at a position; on a wire, it interrupts the line."""

    text: str
    at: Point


@dataclass(frozen=True, slots=True)
class Wire:
    """An index.

    Args:
        index: Name of the index.
        family: Family of the index.
        ends: Number of each carrier's box, and the position at which the wire ends.
        paths: Lines, whose corners are drawn round.
        dots: Positions at which more than two lines meet.
        label: The typeset name.
        leg: Tip of the line that leaves the network, for an index of the output.
        ones: Position of a vector of ones, for a summed index with a single carrier.
    """

    index: str
    family: Family
    ends: tuple[tuple[int, Point], ...]
    paths: tuple[Path, ...]
    dots: tuple[Point, ...]
    label: Label
    leg: Point | None = None
    ones: Point | None = None


@dataclass(frozen=True, slots=True)
class Shade:
    """A labelled area behind the boxes of a part of the network."""

    label: str
    low: Point
    high: Point


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture of one network, or of several side by side."""

    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]
    shades: tuple[Shade, ...]
    texts: tuple[Label, ...]
    low: Point
    high: Point

    @property
    def width(self) -> float:
        """Width of the picture."""
        return self.high.x - self.low.x

    @property
    def height(self) -> float:
        """Height of the picture."""
        return self.high.y - self.low.y

    def moved(self, x: float, y: float) -> Scene:
        """Return the scene, moved so much to the right and up."""

        def path(points: Iterable[Point]) -> Path:
            return tuple(point.by(x, y) for point in points)

        def maybe(point: Point | None) -> Point | None:
            return point and point.by(x, y)

        def label(old: Label) -> Label:
            return Label(old.text, old.at.by(x, y))

        return Scene(
            tuple(replace(box, center=box.center.by(x, y)) for box in self.boxes),
            tuple(
                replace(
                    wire,
                    ends=tuple((box, end.by(x, y)) for box, end in wire.ends),
                    paths=tuple(map(path, wire.paths)),
                    dots=path(wire.dots),
                    label=label(wire.label),
                    leg=maybe(wire.leg),
                    ones=maybe(wire.ones),
                )
                for wire in self.wires
            ),
            tuple(
                Shade(shade.label, shade.low.by(x, y), shade.high.by(x, y))
                for shade in self.shades
            ),
            tuple(map(label, self.texts)),
            self.low.by(x, y),
            self.high.by(x, y),
        )


def strip(
    scenes: Iterable[Scene], titles: Iterable[tuple[str, ...]], columns: int = 3
) -> Scene:
    """Arrange pictures in rows, each below its title.

    Args:
        scenes: The pictures.
        titles: The lines of each title.
        columns: Number of pictures in a row.

    Returns:
        The scene of all pictures.
    """
    boxes: list[Box] = []
    wires: list[Wire] = []
    shades: list[Shade] = []
    texts: list[Label] = []
    x = y = row_height = right = 0.0
    for number, (scene, title) in enumerate(zip(scenes, titles, strict=True)):
        width = max(
            scene.width, max((_LETTER * len(line) for line in title), default=0)
        )
        if number % columns == 0:
            x, y, row_height = 0.0, y - row_height, 0.0
        above = _LINE * (len(title) + 1)
        shift = (width - scene.width) / 2
        placed = scene.moved(x + shift - scene.low.x, y - above - scene.high.y)
        boxes += placed.boxes
        wires += placed.wires
        shades += placed.shades
        texts += placed.texts
        texts += [
            Label(line, Point(x + width / 2, y - _LINE * (j + 0.5)))
            for j, line in enumerate(title)
        ]
        x += width + _BETWEEN
        right = max(right, x - _BETWEEN)
        row_height = max(row_height, above + scene.height + _BETWEEN)
    low, high = Point(0.0, y - row_height + _BETWEEN), Point(right, 0.0)
    parts = tuple(boxes), tuple(wires), tuple(shades), tuple(texts)
    return Scene(*parts, low, high)


_LINE, _LETTER, _BETWEEN = 0.45, 0.16, 1.0
"""Height of a line of text, width of a letter, space between pictures."""
