"""Shortlists: which candidates are worth pricing, as for networks of similar sizes.

Pricing all candidates takes longer than evaluating a small layer. Which of them are
fast changes slowly with the sizes of data and space, so what came close to the fastest
is remembered, and only that is priced for networks that differ in nothing else. Prices
are those of the sizes at hand: this decides what is looked at, not what is chosen.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from math import inf

from tn_extensions.compiler.candidate import Target
from tn_extensions.network import Operand, Pattern, Selection, TensorNetwork
from tn_extensions.network.index import is_primed, prime
from tn_extensions.network.nodes import Node

Source = tuple[tuple[str, ...] | None, int]
"""Origin of a candidate.

The indices over which patterns are joined, or None for the network as it was defined,
and the number of the primitive.
"""

Sizes = tuple[tuple[str, int], ...]

CLOSE = 2
"""Times that a candidate may take of the fastest one to be worth pricing elsewhere."""

_ALIKE = 2
"""Factor up to which sizes are similar; their product may differ by its square.

Where data or a dimension of space get larger, others may get smaller.
"""


def varying_indices(network: TensorNetwork) -> frozenset[str]:
    """Indices of data and space, with their copies.

    They have their axes to themselves, unlike groups and channels, which share them.
    """
    axes = [
        axis.position.indices for operand in network.operands for axis in operand.axes
    ]
    shared = {index for axis in axes if len(axis) > 1 for index in axis}
    own = [index for index in network.indices if index not in shared]
    return frozenset([*own, *map(prime, own)])


class Shortlists:
    """Candidates worth pricing, by networks for which all have been priced."""

    def __init__(self) -> None:
        self._known: dict[Hashable, list[tuple[Sizes, frozenset[Source]]]] = {}

    def find(self, network: TensorNetwork, target: Target) -> frozenset[Source]:
        """The shortlist of the network whose sizes are nearest; empty if none is near.

        Args:
            network: What is planned.
            target: What it is planned for.
        """
        key, sizes = _split(network, target)
        found = (
            (_distance(sizes, others), sources)
            for others, sources in self._known.get(key, ())
        )
        distance, sources = min(
            found, default=(inf, frozenset[Source]()), key=lambda pair: pair[0]
        )
        return sources if distance <= _ALIKE**2 else frozenset()

    def add(
        self, network: TensorNetwork, target: Target, sources: Iterable[Source]
    ) -> None:
        """Remember the shortlist of a network."""
        key, sizes = _split(network, target)
        self._known.setdefault(key, []).append((sizes, frozenset(sources)))

    def clear(self) -> None:
        """Forget all of them."""
        self._known.clear()


def _distance(sizes: Sizes, others: Sizes) -> float:
    """Ratio of the products of all sizes; infinite if one of them is not similar."""
    product = 1.0
    for (index, one), (_, other) in zip(sizes, others, strict=True):
        low, high = (one, other) if one < other else (other, one)
        # rules ask for what is empty or single
        if low != high and (low < 2 or high > _ALIKE * low):
            return inf
        if not is_primed(index):
            product *= one / other if low else 1.0
    return max(product, 1 / product)


def _split(network: TensorNetwork, target: Target) -> tuple[Hashable, Sizes]:
    """The network without the sizes that vary, and these."""
    items = network.sizes.items()
    fixed = tuple(item for item in items if item[0] not in target.varying)
    varying = tuple(item for item in items if item[0] in target.varying)
    nodes = tuple(map(_bare, network.nodes))
    return (nodes, network.output, fixed, target), varying


def _bare(node: Node) -> Hashable:
    if isinstance(node, Operand):
        return node.name, tuple(axis.position.indices for axis in node.axes)
    if isinstance(node, Pattern):
        strides = tuple(stride for stride, _ in node.summed)
        return node.index, node.position, strides
    if isinstance(node, Selection):
        return node
    return _bare(node.first), _bare(node.second), node.shared
