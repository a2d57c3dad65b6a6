"""Squeeze: an index of size one is always zero and can be left out."""

from __future__ import annotations

from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.nodes import Affine, Operand, Pair, Pattern
from tn_extensions.network.rules.identity import states


@states("sum over j of f(j) = f(0), if j has size one")
def squeeze(network: TensorNetwork) -> TensorNetwork | None:
    """Drop one index of size one; None if there is none.

    Indices that a pattern hits stay: that they are hit is a condition on the others.
    """
    held = {pattern.index for pattern in network.patterns}
    held |= {index for pair in network.pairs for index in pair.indices}
    for index in network.indices:
        if network.sizes[index] == 1 and index not in held:
            return _drop(network, index)
    return None


def _drop(network: TensorNetwork, index: str) -> TensorNetwork:
    def without(node: Operand | Pattern | Pair) -> Operand | Pattern | Pair:
        assert not isinstance(node, Pair)
        return node.substitute(index, Affine(()))

    carriers = network.carriers(index)
    output = (tuple(j for j in axis if j != index) for axis in network.output)
    return network.replace(carriers, map(without, carriers), output=output)
