"""Squeeze: an index of size one is always zero and can be dropped."""

from __future__ import annotations

from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.nodes import Affine, Node, Operand, Pattern
from tn_extensions.network.rules.identity import states


@states("sum over j of f(j) = f(0), if j has size one")
def squeeze(network: TensorNetwork) -> TensorNetwork | None:
    """Drop all indices of size one; None if there is none.

    Indices that a pattern hits stay, since the hit is a condition on the other indices.
    """
    held = {pattern.index for pattern in network.patterns}
    joined: list[Node] = [*network.pairs, *network.selections]
    held |= {index for node in joined for index in node.indices}
    single = {
        index
        for index, size in network.sizes.items()
        if size == 1 and index not in held
    }
    if not single:
        return None

    def without(node: Node) -> Node:
        for index in single & {*node.indices}:
            assert isinstance(node, Operand | Pattern)
            node = node.substitute(index, Affine(()))
        return node

    carriers = [node for node in network.nodes if single & {*node.indices}]
    output = (tuple(j for j in axis if j not in single) for axis in network.output)
    return network.rewrite(carriers, map(without, carriers), output=output)
