"""Columns and rows of the nodes of a picture.

A node's column is its distance from the input along index patterns. Rows are spatial
dimensions. The second half, with the primed copies, mirrors the first. Nodes that
belong to both halves are between them: pairs, and operands with primed indices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tn_extensions.diagram.label import is_identity, split
from tn_extensions.network.index import is_primed, prime
from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.nodes import Node, Operand, Pair


@dataclass(frozen=True, slots=True)
class Spot:
    """The place of a node.

    Args:
        number: Position of the node in ``network.nodes``.
        column: Column, from the left.
        row: Row, from the top of the column.
        rows: Number of rows in the column.
        primed: Whether the node is a second copy.
    """

    number: int
    column: int
    row: int
    rows: int
    primed: bool

    @property
    def first(self) -> bool:
        """True if nothing is above the node."""
        return self.row == 0

    @property
    def last(self) -> bool:
        """True if nothing is below the node."""
        return self.row == self.rows - 1


def place(network: TensorNetwork) -> tuple[Spot, ...]:
    """Find a spot for each node, in the order of the nodes."""
    nodes = network.nodes
    copies = _copies(nodes)
    halves = [
        [number for number in range(len(nodes)) if (number in copies) == primed]
        for primed in (False, True)
    ]
    between = [number for number in halves[0] if is_between(nodes[number])]
    if copies:
        halves[0] = [number for number in halves[0] if number not in between]
    left, right = (_columns(nodes, half, bool(copies)) for half in halves)
    columns = [*left, *([between] if copies and between else []), *reversed(right)]
    spots = {
        number: Spot(number, column, row, len(numbers), number in copies)
        for column, numbers in enumerate(columns)
        for row, number in enumerate(numbers)
    }
    return tuple(spots[number] for number in range(len(nodes)))


def is_between(node: Node) -> bool:
    """Tell whether a node that is not a copy belongs to both halves."""
    return isinstance(node, Pair) or isinstance(node, Operand) and _primes(node) > 0


def _copies(nodes: Sequence[Node]) -> set[int]:
    """Return the second copies; of two equal operands, the one with more primes."""
    copies = set()
    seen: Counter[str] = Counter()
    by_primes = sorted(range(len(nodes)), key=lambda j: _primes(nodes[j]))
    for number in by_primes:
        node = nodes[number]
        if isinstance(node, Operand):
            if seen[node.name] % 2:
                copies.add(number)
            seen[node.name] += 1
    if copies:
        known = {index for node in nodes for index in node.indices}
        for number, node in enumerate(nodes):
            # indices that the halves share do not tell to which one a pattern belongs
            own = [j for j in node.indices if is_primed(j) or prime(j) in known]
            if not isinstance(node, (Operand, Pair)) and 2 * _primes(node) > len(own):
                copies.add(number)
    return copies


def _primes(node: Node) -> int:
    return sum(map(is_primed, node.indices))


def _columns(nodes: Sequence[Node], half: list[int], mirrored: bool) -> list[list[int]]:
    """Group nodes of a half by distance from its first operand, or from any of them."""
    half = sorted(half, key=lambda number: _order(nodes[number]))
    operands = [number for number in half if isinstance(nodes[number], Operand)]
    # operands that share a channel are kept apart, with the patterns between them
    distance: dict[int, int] = dict.fromkeys(operands if mirrored else operands[:1], 0)
    _reach(nodes, half, distance, patterns_only=True)
    _reach(nodes, half, distance, patterns_only=False)
    for number in half:
        if number not in distance:
            distance[number] = 0 if isinstance(nodes[number], Operand) else 1
            _reach(nodes, half, distance, patterns_only=True)
    filled = sorted(set(distance.values()))
    return [[number for number in half if distance[number] == at] for at in filled]


def _reach(
    nodes: Sequence[Node],
    half: list[int],
    distance: dict[int, int],
    patterns_only: bool,
) -> None:
    """Extend distances to all connected nodes.

    Args:
        nodes: All nodes.
        half: Numbers of the nodes to reach.
        distance: Distances of the nodes that have been reached; changed in place.
        patterns_only: Whether to ignore connections between two operands.
    """
    queue = sorted(distance, key=distance.__getitem__)
    for number in queue:
        for other in half:
            direct = isinstance(nodes[number], Operand) and isinstance(
                nodes[other], Operand
            )
            joined = set(nodes[number].indices) & set(nodes[other].indices)
            if other not in distance and joined and not (patterns_only and direct):
                distance[other] = distance[number] + 1
                queue.append(other)


def _order(node: Node) -> tuple[object, ...]:
    """Return a key: first the input, then patterns by dimension, then identities."""
    if isinstance(node, Operand):
        return (0, node.name != "x", 0, node.name)
    pattern = node.first if isinstance(node, Pair) else node
    base, number, _ = split(pattern.index)
    return (1, is_identity(node), int(number or 0), base)
