"""Networks of which some indices are narrowed to the values that were drawn."""

from __future__ import annotations

from functools import lru_cache

from tn_extensions.network import Operand, Selection, TensorNetwork
from tn_extensions.network.index import mirrored


@lru_cache(maxsize=4096)
def samplable(network: TensorNetwork) -> tuple[str, ...]:
    """Indices of a network that can be sampled.

    Those that an operand carries and that are summed, or that the input ``x`` and the
    result carry (then slices of the result are zero). Index and primed copy have to be
    one, since both copies of an operand are narrowed alike.
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
    """Whether operands carry an index, in axes that can be narrowed."""
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

    An index that nothing else carries gets smaller. What is left of a pattern is no
    pattern, so one that is joined to others keeps its size: operands carry that of its
    sampled positions instead, from which a selection leads to it.
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
    """Name of the index that runs through the sampled positions of another one."""
    return f"s{index}"


@lru_cache(maxsize=4096)
def in_patterns(network: TensorNetwork) -> frozenset[str]:
    """Indices that patterns and the like carry."""
    nodes = [node for node in network.nodes if not isinstance(node, Operand)]
    return frozenset(index for node in nodes for index in node.indices)


@lru_cache(maxsize=4096)
def indices_of_axes(network: TensorNetwork, name: str) -> tuple[tuple[str, ...], ...]:
    """Indices of each axis of an operand; none of one that is not read whole."""
    operand = next(each for each in network.operands if each.name == name)
    return tuple(axis.whole(network.sizes) or () for axis in operand.axes)
