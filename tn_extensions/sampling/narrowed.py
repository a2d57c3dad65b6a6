"""Networks of which some indices are narrowed to the slices that were kept."""

from __future__ import annotations

from functools import lru_cache
from math import prod

from tn_extensions.network import Axis, Operand, Pair, Pattern, TensorNetwork
from tn_extensions.network.index import mirrored
from tn_extensions.network.nodes import Sizes


@lru_cache(maxsize=4096)
def samplable(network: TensorNetwork) -> tuple[str, ...]:
    """Indices of a network that can be sampled.

    Those that an operand carries and that are summed, or that the input ``x`` and the
    result carry (then slices of the result are zero). Index and primed copy have to be
    one, since both copies of an operand are narrowed alike.
    """
    x = {j for o in network.operands if o.name == "x" for j in o.indices}
    patterned = _in_patterns(network)
    result = {*network.output_indices}
    return tuple(
        index
        for index in network.indices
        if mirrored(index) not in network.sizes
        and (index not in result or (index in x and index not in patterned))
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
    """Narrow a network to so many values of each sampled index.

    Those in patterns keep their size, since what is left of a pattern is none.
    """
    patterned = _in_patterns(network)
    changed = {j: count for j, count in counts if j not in patterned}
    sizes = {**network.sizes, **changed}
    operands = [_operand(network, operand, sizes) for operand in network.operands]
    return network.replace(network.operands, operands, sizes)


@lru_cache(maxsize=4096)
def indices_of_axes(network: TensorNetwork, name: str) -> tuple[tuple[str, ...], ...]:
    """Indices of each axis of an operand; none of one that is not read whole."""
    operand = next(each for each in network.operands if each.name == name)
    return tuple(axis.whole(network.sizes) or () for axis in operand.axes)


def _in_patterns(network: TensorNetwork) -> set[str]:
    nodes: list[Pattern | Pair] = [*network.patterns, *network.pairs]
    return {index for node in nodes for index in node.indices}


def _operand(network: TensorNetwork, operand: Operand, sizes: Sizes) -> Operand:
    axes = []
    for old in operand.axes:
        indices = old.whole(network.sizes)
        if indices is None:  # then nothing of it is sampled
            axes.append(old)
            continue
        extent = prod(sizes[index] for index in indices)
        axes.append(Axis.of(extent, *((index, sizes[index]) for index in indices)))
    return Operand(operand.name, tuple(axes))
