"""Pair: two patterns that share a summed index become one node without it.

Over ``o`` this is the lag structure of KFAC-expand, over ``k`` that of the unfolded
input's Gram matrix, over ``i`` that of transposed convolutions. Whether it pays is up
to the planner, so the rule is not among those that :func:`simplify` applies by itself.
"""

from __future__ import annotations

from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.nodes import Pair, Pattern
from tn_extensions.network.rules.identity import states


def pairable(network: TensorNetwork) -> tuple[str, ...]:
    """Summed indices that two different patterns share, and nothing else does."""
    return tuple(
        index
        for index in network.summed_indices
        if len(carriers := network.carriers(index)) == 2
        and carriers[0] != carriers[1]
        and all(isinstance(node, Pattern) and not node.summed for node in carriers)
    )


@states("sum over o of P[i; o, k] P[i'; o, k'] is one node")
def pair(network: TensorNetwork, shared: str | None = None) -> TensorNetwork | None:
    """Join two patterns over an index (default: the first possible); None if none."""
    candidates = pairable(network)
    if not candidates or (shared is not None and shared not in candidates):
        return None
    index = candidates[0] if shared is None else shared
    first, second = network.carriers(index)
    assert isinstance(first, Pattern) and isinstance(second, Pattern)
    joined = Pair(first, second, index, network.sizes[index])
    return network.rewrite((first, second), (joined,))
