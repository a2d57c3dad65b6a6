"""Layout: from a network to a scene, the same each time and for all backends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tn_extensions.diagram import label
from tn_extensions.diagram.place import Spot, is_between, place
from tn_extensions.diagram.ports import Ports, ports
from tn_extensions.diagram.route import Router
from tn_extensions.diagram.scene import (
    Box,
    Kind,
    Label,
    Point,
    Scene,
    Shade,
    Wire,
)
from tn_extensions.diagram.wiring import Link, wiring
from tn_extensions.errors import describe
from tn_extensions.network.index import is_primed
from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.nodes import Node, Operand, Pair, Selection

LIMIT = 200
"""Number of nodes above which a picture takes long and does not help."""

_GAP, _TIGHT, _ROOMY, _MARGIN = 1.9, 0.55, 1.2, 0.3
"""Space between columns, between rows without and with legs, and around shades."""


def layout(
    network: TensorNetwork,
    shade: Mapping[str, Iterable[str]] | None = None,
    caption: bool = True,
) -> Scene:
    """Lay out a network.

    Args:
        network: The network.
        shade: Parts to shade: labels, and names of nodes (see :func:`names`). Default:
            the halves of a mirrored network.
        caption: Whether to write the axes of the result below the picture.

    Returns:
        The scene.

    Raises:
        ValueError: If the network has more than 200 nodes, or no node of a given name.
    """
    if len(network.nodes) > LIMIT:
        rule, remedy = f"have at most {LIMIT} nodes", "Draw its parts"
        raise ValueError(
            describe("layout", "network", rule, len(network.nodes), remedy)
        )
    spots = place(network)
    parts = _parts(network, spots, shade)
    links = wiring(network, spots)
    ordered = ports(links)
    boxes = _boxes(network, spots, links, ordered)
    wires = Router(boxes, spots, ordered, links).wires()
    shades = tuple(_shade(name, [boxes[j] for j in part]) for name, part in parts)
    low, high = _bounds(boxes, wires, shades)
    texts: tuple[Label, ...] = ()
    if caption:
        text = label.caption(network.output, network.shape)
        half = max(high.x - low.x, 0.18 * label.size_of(text)) / 2
        middle = (low.x + high.x) / 2
        texts = (Label(text, Point(middle, low.y - 0.35)),)
        low, high = Point(middle - half, low.y - 0.6), Point(middle + half, high.y)
    return Scene(boxes, wires, shades, texts, low, high)


def names(network: TensorNetwork) -> tuple[str, ...]:
    """Return the names of nodes in the picture, in order: ``"x"``, ``"P1'"``."""
    return _names(network, place(network))


def _names(network: TensorNetwork, spots: Sequence[Spot]) -> tuple[str, ...]:
    result = []
    for node, spot in zip(network.nodes, spots, strict=True):
        if isinstance(node, Operand):
            name = node.name
        elif isinstance(node, Selection):
            name = node.kept
        else:
            pattern = node.first if isinstance(node, Pair) else node
            base, number, _ = label.split(pattern.index)
            kind = "pair" if isinstance(node, Pair) else "P"
            name = f"delta {base}" if label.is_identity(node) else kind + number
        result.append(name + "'" * spot.primed)
    return tuple(result)


def _parts(
    network: TensorNetwork,
    spots: Sequence[Spot],
    shade: Mapping[str, Iterable[str]] | None,
) -> list[tuple[str, list[int]]]:
    """Return the labels of shaded parts, with the numbers of their nodes."""
    if shade is None:
        own = [s for s in spots if s.primed or not is_between(network.nodes[s.number])]
        halves = [[s.number for s in own if s.primed == p] for p in (False, True)]
        copies = (network.nodes[number] for number in halves[1])
        # a squared operand's copy is not a half
        if not any(is_primed(index) for node in copies for index in node.indices):
            return []
        return list(zip(("half", "copy"), halves, strict=True))
    known = _names(network, spots)
    parts = []
    for title, wanted in shade.items():
        wanted = tuple(wanted)
        for name in wanted:
            if name not in known:
                rule = f"name nodes among {', '.join(map(repr, sorted(set(known))))}"
                raise ValueError(describe("layout", "shade", rule, repr(name)))
        parts.append((title, [j for j, name in enumerate(known) if name in wanted]))
    return parts


def _boxes(
    network: TensorNetwork, spots: Sequence[Spot], links: Sequence[Link], ordered: Ports
) -> tuple[Box, ...]:
    texts = [
        label.lines(node, spot.primed)
        for node, spot in zip(network.nodes, spots, strict=True)
    ]
    sizes = [
        ordered.size(spot, lines, not isinstance(node, Operand))
        for node, spot, lines in zip(network.nodes, spots, texts, strict=True)
    ]
    count = max((spot.column for spot in spots), default=-1) + 1
    widths = [
        max(sizes[s.number].x for s in spots if s.column == c) for c in range(count)
    ]
    lefts = [sum(widths[:c]) + _GAP * c for c in range(count)]
    tall = max((size.y for size in sizes), default=0.0)
    between = max(map(_room, links), default=_TIGHT)
    rows = max((spot.rows for spot in spots), default=1)
    height = (rows - 1) * (tall + between)
    boxes = []
    for node, spot, lines, size in zip(network.nodes, spots, texts, sizes, strict=True):
        # columns with fewer rows are spread over the same height
        y = height * (0.5 - spot.row / (spot.rows - 1)) if spot.rows > 1 else 0.0
        center = Point(lefts[spot.column] + widths[spot.column] / 2, y)
        boxes.append(Box(spot.number, _kind(node), center, size.x, size.y, lines))
    return tuple(boxes)


def _kind(node: Node) -> Kind:
    if isinstance(node, Operand):
        return "operand"
    return "pair" if isinstance(node, Pair) else "pattern"


def _room(link: Link) -> float:
    """Return the space that a link needs between rows."""
    if link.course == "leg" and link.sides[0] == "bottom":
        return _ROOMY if link.output else _ROOMY + 0.3
    legs = link.course == "straight" and link.output
    return _ROOMY if legs or link.course == "stacked" else _TIGHT


def _shade(name: str, boxes: Sequence[Box]) -> Shade:
    xs = [box.center.x + sign * box.width / 2 for box in boxes for sign in (-1, 1)]
    ys = [box.center.y + sign * box.height / 2 for box in boxes for sign in (-1, 1)]
    low = Point(min(xs) - _MARGIN, min(ys) - _MARGIN - 0.25)
    return Shade(name, low, Point(max(xs) + _MARGIN, max(ys) + _MARGIN))


def _bounds(
    boxes: Iterable[Box], wires: Iterable[Wire], shades: Iterable[Shade]
) -> tuple[Point, Point]:
    points = [corner for box in boxes for corner in box.outline]
    points += [corner for shade in shades for corner in (shade.low, shade.high)]
    for wire in wires:
        points += [point for path in wire.paths for point in path]
        half = 0.08 * label.size_of(wire.label.text)
        points += [
            wire.label.at.by(side * half, up) for side in (-1, 1) for up in (-0.2, 0.2)
        ]
        points += [wire.ones.by(d, d) for d in (-0.2, 0.2)] if wire.ones else []
    points = points or [Point(0.0, 0.0)]
    xs, ys = zip(*points, strict=True)
    return Point(min(xs) - 0.15, min(ys) - 0.15), Point(max(xs) + 0.15, max(ys) + 0.15)
