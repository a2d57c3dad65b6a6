"""Parts of networks: find one network in another and replace it by its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

from tn_extensions.network.index import prime
from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.nodes import Affine, Axis, Node, Operand, Pattern

Names = Mapping[str, str]
"""Map from indices of the part to indices of the network."""


def stored(name: str, network: TensorNetwork) -> Operand:
    """Make the operand that stands for the result of a network."""
    axes = (
        Axis.of(size, *((index, network.sizes[index]) for index in axis))
        for axis, size in zip(network.output, network.shape, strict=True)
    )
    return Operand(name, tuple(axes))


def substitute(
    network: TensorNetwork, part: TensorNetwork, name: str
) -> tuple[TensorNetwork, list[Names]] | None:
    """Replace a part of a network by an operand, the result of the part.

    Indices may have other names in the part. Nothing else in the network may carry an
    index that the part sums over. Two indices of the part's result may be one index in
    the network, which then reads the result's diagonal: squared norms are the diagonal
    of a Gram matrix.

    Args:
        network: The network.
        part: A network of operands and patterns that occurs in it, once or more often.
        name: Name of the operand.

    Returns:
        The network with the operand in place of each occurrence, and a map of index
        names for each of them; None if there is no occurrence.
    """
    found: list[Names] = []
    while (occurrence := _occurrence(network, part)) is not None:
        nodes, names = occurrence
        own = dict(names)
        deltas, sizes = [], {}
        seen: set[str] = set()
        for index in part.output_indices:
            target = fresh = names[index]
            while fresh in seen:
                fresh = prime(fresh)
                while fresh in network.sizes or fresh in sizes:
                    fresh = prime(fresh)
            seen.add(fresh)
            if fresh != target:
                own[index], sizes[fresh] = fresh, part.sizes[index]
                deltas.append(Pattern(fresh, Affine(((target, 1),))))
        operand = stored(name, part).rename(own.__getitem__)
        network = network.replace(nodes, [operand, *deltas], sizes)
        found.append(names)
    return (network, found) if found else None


def _occurrence(
    network: TensorNetwork, part: TensorNetwork
) -> tuple[tuple[Node, ...], Names] | None:
    """Find an occurrence of a part: its nodes, and a map of index names."""
    # operands first: they determine the names of most indices
    nodes = sorted(part.nodes, key=lambda node: not isinstance(node, Operand))
    for found, names in _matches(nodes, network.nodes, {}, part, network):
        summed = {names[index] for index in part.summed_indices}
        others = list(network.nodes)
        for node in found:
            others.remove(node)
        needed = {
            *network.output_indices,
            *(j for node in others for j in node.indices),
        }
        kept = {names[index] for index in part.output_indices}
        is_apart = len(summed) == len(part.summed_indices)
        if is_apart and not summed & (needed | kept):
            return found, names
    return None


def _matches(
    wanted: Sequence[Node],
    left: Sequence[Node],
    names: Names,
    part: TensorNetwork,
    network: TensorNetwork,
) -> Iterator[tuple[tuple[Node, ...], Names]]:
    """Yield nodes that equal the wanted ones up to names, with a map of the names."""
    if not wanted:
        yield (), names
        return
    first, *rest = wanted
    for number, node in enumerate(left):
        others = (*left[:number], *left[number + 1 :])
        for extended in _renamings(first, node, names):
            fits = all(
                part.sizes[one] == network.sizes[other]
                for one, other in extended.items()
            )
            if fits:
                for found, known in _matches(rest, others, extended, part, network):
                    yield (node, *found), known


def _renamings(one: Node, other: Node, names: Names) -> Iterator[Names]:
    """Yield extensions of a map of names that turn one node into the other."""
    if isinstance(one, Operand) and isinstance(other, Operand):
        if (one.name, one.shape) == (other.name, other.shape):
            pairs = zip(one.axes, other.axes, strict=True)
            positions = [(a.position, b.position) for a, b in pairs]
            yield from _of_positions(positions, names)
    elif isinstance(one, Pattern) and isinstance(other, Pattern):
        known = names.get(one.index, other.index) == other.index
        if known and one.summed == other.summed:
            names = {**names, one.index: other.index}
            yield from _of_positions([(one.position, other.position)], names)


def _of_positions(
    positions: Sequence[tuple[Affine, Affine]], names: Names
) -> Iterator[Names]:
    if not positions:
        yield names
        return
    (one, other), *rest = positions
    if one.start != other.start or len(one.terms) != len(other.terms):
        return
    for order in permutations(other.terms):
        extended = dict(names)
        pairs = zip(one.terms, order, strict=True)
        if all(
            stride == step and extended.setdefault(index, target) == target
            for (index, stride), (target, step) in pairs
        ):
            yield from _of_positions(rest, extended)
