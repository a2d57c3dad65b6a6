"""Which column and row each node goes to.

Columns are distances along index patterns from the input; spatial dimensions are
stacked in rows. A second half, of nodes that are primed copies, mirrors the first. What
belongs to both stands between the two: pairs, and an operand that one of them meets.
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
    """Where a node goes.

    Args:
        number: Its position in ``network.nodes``.
        column: From the left.
        row: From the top of its column.
        rows: How many rows its column has.
        primed: Whether it is the second copy.
    """

    number: int
    column: int
    row: int
    rows: int
    primed: bool

    @property
    def first(self) -> bool:
        """Whether nothing is above it."""
        return self.row == 0

    @property
    def last(self) -> bool:
        """Whether nothing is below it."""
        return self.row == self.rows - 1


def place(network: TensorNetwork) -> tuple[Spot, ...]:
    """A spot for each node, in the order of the nodes."""
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
    """Tell whether a node that is no copy meets copies."""
    return isinstance(node, Pair) or isinstance(node, Operand) and _primes(node) > 0


def _copies(nodes: Sequence[Node]) -> set[int]:
    """Nodes that are second copies: of an operand's two, that with more primes."""
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
            # indices that the halves share do not tell whose a pattern is
            own = [j for j in node.indices if is_primed(j) or prime(j) in known]
            if not isinstance(node, (Operand, Pair)) and 2 * _primes(node) > len(own):
                copies.add(number)
    return copies


def _primes(node: Node) -> int:
    return sum(map(is_primed, node.indices))


def _columns(nodes: Sequence[Node], half: list[int], mirrored: bool) -> list[list[int]]:
    """Nodes of a half by their distance from the first operand (if mirrored, any)."""
    half = sorted(half, key=lambda number: _order(nodes[number]))
    operands = [number for number in half if isinstance(nodes[number], Operand)]
    # operands that share the channel stand apart, with the patterns between them
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
    """Extend distances to all nodes that are connected.

    Args:
        nodes: All nodes.
        half: Numbers of those to reach.
        distance: Distances of those that are reached; changed in place.
        patterns_only: Whether two operands that share an index count as apart.
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
    """The input first; patterns by dimension, identities last."""
    if isinstance(node, Operand):
        return (0, node.name != "x", 0, node.name)
    pattern = node.first if isinstance(node, Pair) else node
    base, number, _ = split(pattern.index)
    return (1, is_identity(node), int(number or 0), base)
