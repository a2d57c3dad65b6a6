"""Networks of which some indices are narrowed to the slices that were kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

from tn_extensions.network import Axis, Operand, Pair, Pattern, TensorNetwork
from tn_extensions.network.index import mirrored
from tn_extensions.network.nodes import Node, Sizes
from tn_extensions.sampling.gather import Gather

WORTHWHILE = 0.8
"""Share of the work from which on a gather no longer pays for its copies."""


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


@dataclass(frozen=True)
class Narrowed:
    """A network, narrowed.

    Args:
        network: What is contracted.
        gathers: Patterns that operands are read through.
        filled: Sampled indices of other patterns: of full size, dropped slices zero.
    """

    network: TensorNetwork
    gathers: tuple[Gather, ...]
    filled: tuple[str, ...]


@lru_cache(maxsize=4096)
def narrow(network: TensorNetwork, counts: tuple[tuple[str, int], ...]) -> Narrowed:
    """Narrow a network to so many values of each sampled index."""
    sizes = dict(counts)
    gathers = _gathers(network, sizes)
    patterned = _in_patterns(network)
    filled = tuple(
        index
        for index in sizes
        if index in patterned and all(index != g.kept for g in gathers)
    )
    changed = {j: count for j, count in counts if j not in filled}
    for gather in gathers:
        changed |= {gather.read: sizes[gather.kept], gather.one: 1}
        filled = tuple(j for j in filled if j != gather.read)
    full = {**network.sizes, **changed}
    operands = [_operand(network, o, gathers, full) for o in network.operands]
    output = [
        tuple(
            each for j in axis for each in (j, *(g.one for g in gathers if g.free == j))
        )
        for axis in network.output
    ]
    added: list[Node] = [*operands, *(gather.identity for gather in gathers)]
    removed: list[Node] = [*network.operands, *(gather.pattern for gather in gathers)]
    return Narrowed(network.replace(removed, added, full, output), gathers, filled)


@lru_cache(maxsize=4096)
def indices_of_axes(network: TensorNetwork, name: str) -> tuple[tuple[str, ...], ...]:
    """Indices of each axis of an operand; none of one that is not read whole."""
    operand = next(each for each in network.operands if each.name == name)
    return tuple(axis.whole(network.sizes) or () for axis in operand.axes)


def _in_patterns(network: TensorNetwork) -> set[str]:
    nodes: list[Pattern | Pair] = [*network.patterns, *network.pairs]
    return {index for node in nodes for index in node.indices}


def _gathers(network: TensorNetwork, counts: Sizes) -> tuple[Gather, ...]:
    """At most one gather a pattern, and one that copies an operand several times."""
    sizes = network.sizes
    found = [g for index in counts for g in Gather.all(network, index)]
    found.sort(key=lambda g: (g.share(sizes, counts[g.kept]), g.kept))
    chosen: list[Gather] = []
    copies = 0
    for gather in found:
        copied = sizes[gather.free] > 1
        if copied and (copies or gather.share(sizes, counts[gather.kept]) > WORTHWHILE):
            continue
        if all(gather.pattern != other.pattern for other in chosen):
            chosen.append(gather)
            copies += copied
    return tuple(chosen)


def _operand(
    network: TensorNetwork,
    operand: Operand,
    gathers: tuple[Gather, ...],
    sizes: Sizes,
) -> Operand:
    axes = []
    for old in operand.axes:
        indices = old.whole(network.sizes)
        if indices is None:  # then nothing of it is sampled
            axes.append(old)
            continue
        for gather in gathers:
            if gather.read in indices:
                axes.append(
                    Axis.of(sizes[gather.free], (gather.free, sizes[gather.free]))
                )
        extent = prod(sizes[index] for index in indices)
        axes.append(Axis.of(extent, *((index, sizes[index]) for index in indices)))
    return Operand(operand.name, tuple(axes))
