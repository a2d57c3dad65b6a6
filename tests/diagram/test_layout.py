"""A picture shows all of a network, and nothing covers anything else."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import get_args

import pytest

from tests.diagram.networks import CASES, DEFINED, conv
from tests.messages import assert_in_form
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.diagram import Scene, layout, names
from tn_extensions.diagram.label import bold, math, size_of
from tn_extensions.diagram.layout import LIMIT
from tn_extensions.diagram.scene import Box, Label, Path, Point, Wire
from tn_extensions.network import Operand, Pair, Pattern, Selection, build

every_case = pytest.mark.parametrize("network", CASES.values(), ids=CASES.keys())


def test_all_quantities_are_among_the_cases() -> None:
    assert set(DEFINED) == set(get_args(quantities.Quantity))


@every_case
def test_nodes_have_boxes_of_their_shape(network: TensorNetwork) -> None:
    scene = layout(network)
    assert [box.number for box in scene.boxes] == list(range(len(network.nodes)))
    kinds: dict[type, str]
    kinds = {Operand: "operand", Pattern: "pattern", Pair: "pair", Selection: "pattern"}
    for box, node in zip(scene.boxes, network.nodes, strict=True):
        assert box.kind == kinds[type(node)]
        if isinstance(node, Operand):
            assert box.lines[0].startswith(f"${bold(node.name)}")
        elif isinstance(node, Pattern) and len(box.lines) > 1:
            # says when it is one
            for index in node.indices:
                assert math(index) in box.lines[1]


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


@every_case
def test_the_copy_mirrors_the_half(network: TensorNetwork) -> None:
    scene = layout(network, shade={})
    found = dict(zip(names(network), scene.boxes, strict=True))
    middle = (
        min(box.center.x for box in scene.boxes)
        + max(box.center.x for box in scene.boxes)
    ) / 2
    copies = [name for name in found if name.endswith("'")]
    operands = [operand.name for operand in network.operands]
    assert bool(copies) == (len(operands) > len({*operands}))
    if len(operands) % 2:  # one of them meets but one half
        return
    for name in copies:
        box, copy = found[name[:-1]], found[name]
        assert copy.center.y == pytest.approx(box.center.y)
        assert copy.center.x - middle == pytest.approx(middle - box.center.x, abs=0.01)
        assert copy.center.x > box.center.x


@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_spatial_dimensions_are_stacked(num_dims: int) -> None:
    network = quantities.conv(conv(num_dims), 2)
    found = dict(zip(names(network), layout(network).boxes, strict=True))
    patterns = [found[f"P{j + 1}"].center for j in range(num_dims)]
    assert len({center.x for center in patterns}) == 1
    assert sorted(patterns, key=lambda center: -center.y) == patterns
    assert found["x"].center.x < patterns[0].x < found["weight"].center.x


def test_is_deterministic() -> None:
    network = quantities.ggn_diagonal(conv(3), 2, 3)
    other = TensorNetwork(network.nodes[::-1], network.output, network.sizes)
    assert layout(network) == layout(other)


def test_halves_are_shaded_and_parts_may_be() -> None:
    network = quantities.kfac_expand(conv(2), 2)
    half, copy = layout(network).shades
    assert (half.label, copy.label) == ("half", "copy")
    assert half.high.x < copy.low.x
    scene = layout(network, shade={"unfolded input": ["x", "P1", "P2"]})
    (shade,) = scene.shades
    inside = {
        name
        for name, box in zip(names(network), scene.boxes, strict=True)
        if shade.low.x < box.center.x < shade.high.x
    }
    assert shade.label == "unfolded input"
    assert inside == {"x", "P1", "P2"}
    assert layout(network, shade={}).shades == ()


def test_caption_is_the_result() -> None:
    network = quantities.kfac_expand(conv(1), 2)
    assert str(list(network.shape)) in layout(network).texts[0].text
    assert layout(network, caption=False).texts == ()


def test_unknown_node_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        layout(quantities.conv(conv(1), 2), shade={"part": ["y"]})
    assert_in_form(caught.value, "layout", "shade")


def test_empty_network() -> None:
    scene = layout(TensorNetwork((), (), {}))
    assert (scene.boxes, scene.wires) == ((), ())
    assert scene.width > 0
    assert scene.height > 0


def test_large_networks() -> None:
    sizes = {f"a{j}": 2 for j in range(LIMIT + 2)}
    sizes["b"] = 2

    def chain(length: int) -> TensorNetwork:
        return build(
            {f"m{j}": [f"a{j}", f"a{j + 1}", "b"] for j in range(length)},
            ["b", "a0", f"a{length}"],
            {j: s for j, s in sizes.items() if j == "b" or int(j[1:]) <= length},
        )

    assert len(layout(chain(LIMIT)).boxes) == LIMIT
    with pytest.raises(ValueError) as caught:
        layout(chain(LIMIT + 1))
    assert_in_form(caught.value, "layout", "network")


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


@pytest.mark.parametrize("kept", [["k1", "k2"], ["o1", "o2"], ["k1", "k2", "o1", "o2"]])
@pytest.mark.parametrize("transposed", [False, True])
def test_patterns_belong_to_the_half_of_their_operand(
    kept: list[str], transposed: bool
) -> None:
    """Also where all of a pattern's indices are shared but that of its operand."""
    conv = Conv.make(4, 6, 3, (9, 9), groups=2, transposed=transposed)
    half = quantities.unfold_input(conv, 2)
    network = half.times_copy(["n", "g", "ci", *kept], [("n",)])
    for node, name in zip(network.nodes, names(network), strict=True):
        position = "o" if transposed else "i"
        own = [index for index in node.indices if index.startswith(position)]
        if not set(own) <= set(kept):
            assert name.endswith("'") == any(index.endswith("p") for index in own)
