"""Factored squares: if a half is a product without a sum, square its factors.

``sum_n (L[n, b] R[n, a])^2 = sum_n L[n, b]^2 R[n, a]^2``. Gradients of layers with one
output position, such as ``Linear``, have rank one and need not be formed.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from tn_extensions.compiler.candidate import (
    Candidate,
    Operation,
    Target,
    Tensors,
    as_defined,
)
from tn_extensions.compiler.half import Half
from tn_extensions.network import TensorNetwork, simplify
from tn_extensions.network.nodes import Node
from tn_extensions.network.parts import stored


@as_defined
def factored(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Square the factors of the half, and multiply the squares."""
    half = Half.of(network)
    if half is None or half.columns or half.dims or 0 in network.sizes.values():
        return
    alone = half.network(*((index,) for index in half.shared))
    factors = _factors(simplify(alone))
    if len(factors) < 2 or not all(one.operands for one in factors):
        return
    found = {f"squares {number}": one for number, one in enumerate(factors)}
    squares = [stored(name, one) for name, one in found.items()]
    carried = {index for one in squares for index in one.indices}
    # indices of size one have been dropped
    output = [tuple(j for j in axis if j in carried) for axis in network.output]
    rest = target.best(TensorNetwork(squares, output, network.sizes))
    parts = {name: target.best(one) for name, one in found.items()}

    def squared(tensors: Tensors) -> Tensors:
        return {name: part.value(tensors).square() for name, part in parts.items()}

    operations: list[Operation] = []
    for name, part in parts.items():
        elements = prod(found[name].shape)
        moved = target.rates.move(elements, target.itemsize)
        operations += [*part.operations, Operation("square", f"{elements}", moved)]
    held = sum(prod(one.shape) for one in factors)
    yield Candidate(
        f"factored({', '.join(part.name for part in (*parts.values(), rest))})",
        (*operations, *rest.operations),
        held + max(part.peak for part in (*parts.values(), rest)),
        lambda tensors, into: rest.run(squared(tensors), into),
        lambda tensors: rest.value(squared(tensors)),
        all(part.differentiable for part in (*parts.values(), rest)),
    )


def _factors(half: TensorNetwork) -> list[TensorNetwork]:
    """Split a half into networks that share no summed index."""
    kept = {*half.output_indices}
    groups: list[tuple[set[str], list[Node]]] = []
    for node in half.nodes:
        summed, nodes = {*node.indices} - kept, [node]
        joined = [group for group in groups if group[0] & summed]
        for group in joined:
            groups.remove(group)
            summed |= group[0]
            nodes = [*group[1], *nodes]
        groups.append((summed, nodes))
    return [_factor(nodes, half) for _, nodes in groups]


def _factor(nodes: list[Node], half: TensorNetwork) -> TensorNetwork:
    carried = {index for node in nodes for index in node.indices}
    output = [(index,) for index in half.output_indices if index in carried]
    return TensorNetwork(nodes, output, half.sizes)
