"""Shortlists: candidates that were cheap for networks of similar sizes.

Making all candidates takes longer than evaluating a small layer. But the cheap ones
change slowly with the sizes of data and space. So those close to the cheapest are
remembered, and only these are made for networks that differ in nothing but such sizes.
Their costs are estimated for the actual sizes. A shortlist thus restricts the
candidates but does not choose among them.
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

The indices over which patterns are paired, or None for the network as it was defined,
and the number of the primitive.
"""

Sizes = tuple[tuple[str, int], ...]

CLOSE = 2
"""Largest ratio to the cheapest candidate's estimate for a place on a shortlist."""

_ALIKE = 2
"""Largest factor between similar sizes; their products may differ by its square.

When one size gets larger, another one may get smaller.
"""


def varying_indices(network: TensorNetwork) -> frozenset[str]:
    """Return the indices of data and space, with their copies.

    Each of them has an axis to itself, unlike groups and channels, which share axes.
    """
    axes = [
        axis.position.indices for operand in network.operands for axis in operand.axes
    ]
    shared = {index for axis in axes if len(axis) > 1 for index in axis}
    own = [index for index in network.indices if index not in shared]
    return frozenset([*own, *map(prime, own)])


class Shortlists:
    """Sources of cheap candidates, by network."""

    def __init__(self) -> None:
        self._known: dict[Hashable, list[tuple[Sizes, frozenset[Source]]]] = {}

    def find(self, network: TensorNetwork, target: Target) -> frozenset[Source]:
        """Find the shortlist of the network with the nearest sizes.

        Args:
            network: The network to plan.
            target: The target of the plan.

        Returns:
            The sources on it; empty if no network is similar.
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
        """Forget all shortlists."""
        self._known.clear()


def _distance(sizes: Sizes, others: Sizes) -> float:
    """Return the ratio of the products of sizes; infinite if two are not similar."""
    product = 1.0
    for (index, one), (_, other) in zip(sizes, others, strict=True):
        low, high = (one, other) if one < other else (other, one)
        # rules treat sizes of zero and one differently
        if low != high and (low < 2 or high > _ALIKE * low):
            return inf
        if not is_primed(index):
            product *= one / other if low else 1.0
    return max(product, 1 / product)


def _split(network: TensorNetwork, target: Target) -> tuple[Hashable, Sizes]:
    """Split a network into the sizes that vary and everything else."""
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
