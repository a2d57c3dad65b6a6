"""Window sum: a term that no other node carries is summed within its pattern.

``sum_o P[k, o, i]`` is the indicator of an arithmetic progression. KFAC-reduce needs
only this ``K x I`` matrix. Since terms are symmetric, the rule also sums over ``k``.
"""

from __future__ import annotations

from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.rules.identity import states


@states("sum over o of P[i; o, k] = number of o with i = s o + d k - l")
def window_sum(network: TensorNetwork) -> TensorNetwork | None:
    """Sum a term within its pattern; None if other nodes carry all terms."""
    for index in network.summed_indices:
        carriers = network.carriers(index)
        if len(carriers) != 1:
            continue
        for pattern in network.patterns:
            if pattern is carriers[0] and pattern.index != index:
                summed = pattern.sum(index, network.sizes[index])
                return network.rewrite((pattern,), (summed,))
    return None
