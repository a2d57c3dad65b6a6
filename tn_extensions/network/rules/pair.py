"""Pair: two patterns that share a summed index become one node without it.

A pair over ``o`` is the lag structure of KFAC-expand, a pair over ``k`` the one of the
unfolded input's Gram matrix, a pair over ``i`` the one of transposed convolutions. A
pair does not always pay, so the planner decides: :func:`simplify` does not apply this
rule by default.
"""

from __future__ import annotations

from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.nodes import Pair, Pattern
from tn_extensions.network.rules.identity import states


def pairable(network: TensorNetwork) -> tuple[str, ...]:
    """Return the summed indices that exactly two nodes carry, different patterns."""
    return tuple(
        index
        for index in network.summed_indices
        if len(carriers := network.carriers(index)) == 2
        and carriers[0] != carriers[1]
        and all(isinstance(node, Pattern) and not node.summed for node in carriers)
    )


@states("sum over o of P[i; o, k] P[i'; o, k'] is one node")
def pair(network: TensorNetwork, shared: str | None = None) -> TensorNetwork | None:
    """Join two patterns over an index (default: the first possible one), or None."""
    candidates = pairable(network)
    if not candidates or (shared is not None and shared not in candidates):
        return None
    index = candidates[0] if shared is None else shared
    first, second = network.carriers(index)
    assert isinstance(first, Pattern) and isinstance(second, Pattern)
    joined = Pair(first, second, index, network.sizes[index])
    return network.rewrite((first, second), (joined,))
