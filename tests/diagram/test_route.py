"""Lines reach what carries an index, and cross no box."""

from __future__ import annotations

from itertools import combinations, pairwise

from tests.diagram.test_layout import every_case
from tn_extensions import TensorNetwork
from tn_extensions.diagram import Scene, layout
from tn_extensions.diagram.label import math, size_of
from tn_extensions.diagram.scene import Box, Label, Path, Point, Wire


@every_case
def test_each_index_reaches_all_that_carry_it(network: TensorNetwork) -> None:
    scene = layout(network)
    assert [wire.index for wire in scene.wires] == list(network.indices)
    for wire in scene.wires:
        carriers = [
            number
            for number, node in enumerate(network.nodes)
            if wire.index in node.indices
        ]
        assert sorted(number for number, _ in wire.ends) == carriers
        for number, end in wire.ends:
            assert on_border(scene.boxes[number], end)
        assert wire.label.text == f"${math(wire.index)}$"
        assert (wire.leg is not None) == (wire.index in network.output_indices)
        single = len(carriers) == 1 and wire.index not in network.output_indices
        assert (wire.ones is not None) == single
        branches = len(carriers) + (wire.leg is not None) > 2
        assert bool(wire.dots) == branches
        assert_connected(wire)


@every_case
def test_nothing_covers_anything_else(network: TensorNetwork) -> None:
    scene = layout(network)
    for first, second in combinations(scene.boxes, 2):
        assert not overlap(extent(first), extent(second))
    for wire in scene.wires:
        for path in wire.paths:
            for box in scene.boxes:
                assert not crosses(path, box), f"{wire.index} through {box.lines}"
    texts = [wire.label for wire in scene.wires]
    for label in texts:
        for box in scene.boxes:
            assert not overlap(room(label), extent(box)), label
    for one, other in combinations(texts, 2):
        assert not overlap(room(one), room(other)), f"{one} on {other}"
    for wire in scene.wires:  # a label belongs to one line
        for other in scene.wires:
            if other is not wire and wire.leg:
                assert not any(meets(path, room(wire.label)) for path in other.paths), (
                    f"{other.index} through the label of {wire.index}"
                )
    for point in points(scene):
        assert scene.low.x <= point.x <= scene.high.x
        assert scene.low.y <= point.y <= scene.high.y


def on_border(box: Box, point: Point) -> bool:
    corners = [*box.outline, box.outline[0]]
    return any(distance(point, a, b) < 1e-6 for a, b in pairwise(corners))


def assert_connected(wire: Wire) -> None:
    """All ends hang together by lines that meet."""
    goals = [end for _, end in wire.ends] + [p for p in (wire.leg,) if p]
    reached, lines = [wire.paths[0]], list(wire.paths[1:])
    while touching := [
        line for line in lines if any(touch(line, other) for other in reached)
    ]:
        reached += touching
        lines = [line for line in lines if line not in touching]
    assert not lines, f"{wire.index} is in parts"
    for goal in goals:
        assert any(near(path, goal) for path in reached), wire.index
    for dot in wire.dots:
        assert sum(near(path, dot) for path in reached) >= 2, wire.index


def touch(one: Path, other: Path) -> bool:
    ends = [(one[0], other), (one[-1], other), (other[0], one), (other[-1], one)]
    return any(near(path, end) for end, path in ends)


def near(path: Path, point: Point) -> bool:
    return any(distance(point, a, b) < 1e-6 for a, b in pairwise(path))


def distance(point: Point, a: Point, b: Point) -> float:
    along = Point(b.x - a.x, b.y - a.y)
    length = along.x**2 + along.y**2
    part = (point.x - a.x) * along.x + (point.y - a.y) * along.y
    part = min(max(part / length, 0), 1) if length else 0
    dx, dy = a.x + part * along.x - point.x, a.y + part * along.y - point.y
    return (dx * dx + dy * dy) ** 0.5


def samples(path: Path) -> list[Point]:
    return [
        a.by((b.x - a.x) * j / 40, (b.y - a.y) * j / 40)
        for a, b in pairwise(path)
        for j in range(41)
    ]


def crosses(path: Path, box: Box) -> bool:
    return any(box.contains(point, margin=box.tip + 0.02) for point in samples(path))


Extent = tuple[float, float, float, float]


def meets(path: Path, at: Extent) -> bool:
    return any(at[0] < p.x < at[1] and at[2] < p.y < at[3] for p in samples(path))


def extent(box: Box) -> Extent:
    w, h = box.width / 2, box.height / 2
    return (box.center.x - w, box.center.x + w, box.center.y - h, box.center.y + h)


def room(label: Label) -> Extent:
    w, h = 0.07 * size_of(label.text), 0.12
    return (label.at.x - w, label.at.x + w, label.at.y - h, label.at.y + h)


def overlap(one: Extent, other: Extent) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1]) and max(
        one[2], other[2]
    ) < min(one[3], other[3])


def points(scene: Scene) -> list[Point]:
    return [
        *(corner for box in scene.boxes for corner in box.outline),
        *(point for wire in scene.wires for path in wire.paths for point in path),
        *(corner for shade in scene.shades for corner in (shade.low, shade.high)),
        *(wire.label.at for wire in scene.wires),
    ]
