"""Window sum: a pattern's term that nothing else carries is summed within the pattern.

``sum_o P[k, o, i]`` indicates an arithmetic progression; KFAC-reduce needs this ``K x
I`` matrix only. By symmetry of the terms the same rule is the kernel sum over ``k``.
"""

from __future__ import annotations

from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.rules.identity import states


@states("sum over o of P[i; o, k] = number of o with i = s o + d k - l")
def window_sum(network: TensorNetwork) -> TensorNetwork | None:
    """Sum one term within its pattern; None if every term is carried elsewhere."""
    for index in network.summed_indices:
        carriers = network.carriers(index)
        if len(carriers) != 1:
            continue
        for pattern in network.patterns:
            if pattern is carriers[0] and pattern.index != index:
                summed = pattern.sum(index, network.sizes[index])
                return network.rewrite((pattern,), (summed,))
    return None
