"""Networks with some indices narrowed to the values that were drawn."""

from __future__ import annotations

from functools import lru_cache

from tn_extensions.network import Operand, Selection, TensorNetwork
from tn_extensions.network.index import mirrored


@lru_cache(maxsize=4096)
def samplable(network: TensorNetwork) -> tuple[str, ...]:
    """Return the indices of a network that can be sampled.

    An operand must carry the index. It must be summed, or be carried by the input ``x``
    and the result but no pattern (then slices of the result are zero). It must not have
    a primed copy, since both copies of an operand are narrowed in the same way.
    """
    x = {j for o in network.operands if o.name == "x" for j in o.indices}
    joined = in_patterns(network)
    result = {*network.output_indices}
    return tuple(
        index
        for index in network.indices
        if mirrored(index) not in network.sizes
        and (index not in result or (index in x and index not in joined))
        and _carried(network, index)
    )


def _carried(network: TensorNetwork, index: str) -> bool:
    """Tell whether operands carry an index, in axes that can be narrowed."""
    carriers = [o for o in network.operands if index in o.indices]
    names = {operand.name for operand in carriers}
    alike = all(index in o.indices for o in network.operands if o.name in names)
    axes = [axis for o in carriers for axis in o.axes if index in axis.position.indices]
    return bool(axes) and alike and all(axis.whole(network.sizes) for axis in axes)


@lru_cache(maxsize=4096)
def narrow(
    network: TensorNetwork, counts: tuple[tuple[str, int], ...]
) -> TensorNetwork:
    """Narrow the operands of a network to so many values of some indices.

    An index that only operands carry gets smaller. But a pattern restricted to sampled
    positions is not a pattern, so an index of a pattern keeps its size. Operands carry
    the index of its sampled positions instead, and a selection joins the two.
    """
    joined = in_patterns(network)
    sizes = {**network.sizes}
    names: dict[str, str] = {}
    for index, count in counts:
        names[index] = sampled(index) if index in joined else index
        sizes[names[index]] = count

    added = [Selection(kept, index) for index, kept in names.items() if index != kept]
    old = network.operands
    operands = [operand.resized(network.sizes, sizes, names) for operand in old]
    return network.replace(old, [*operands, *added], sizes)


def sampled(index: str) -> str:
    """Return the name of the index of another one's sampled positions."""
    return f"s{index}"


@lru_cache(maxsize=4096)
def in_patterns(network: TensorNetwork) -> frozenset[str]:
    """Return the indices that patterns, pairs or selections carry."""
    nodes = [node for node in network.nodes if not isinstance(node, Operand)]
    return frozenset(index for node in nodes for index in node.indices)


@lru_cache(maxsize=4096)
def indices_of_axes(network: TensorNetwork, name: str) -> tuple[tuple[str, ...], ...]:
    """Return the indices of each axis of an operand; none for an axis read in part."""
    operand = next(each for each in network.operands if each.name == name)
    return tuple(axis.whole(network.sizes) or () for axis in operand.axes)
