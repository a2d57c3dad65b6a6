"""Dense: a pattern that hits each position at most once is a view of its operand.

With ``K = s, d = 1`` and no padding the view is a reshape, with ``K = 1`` a strided
slice, with a single term a slice. Each time, the pattern's position is inserted into
the operand's axis.
"""

from __future__ import annotations

from math import gcd

from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.nodes import Operand, Pattern
from tn_extensions.network.rules.identity import states


@states("A[i] P[i; o, k] = A[s o + d k - l], if no position is hit twice or outside")
def dense(network: TensorNetwork) -> TensorNetwork | None:
    """Replace a pattern by a view of its operand; None if no pattern is a view."""
    kept = set(network.output_indices)
    for pattern in network.patterns:
        others = [n for n in network.carriers(pattern.index) if n is not pattern]
        if len(others) != 1 or pattern.index in kept or pattern.summed:
            continue
        (operand,) = others
        # an operand that also carries a term would be read along a diagonal
        apart = not set(pattern.position.indices) & set(operand.indices)
        if isinstance(operand, Operand) and apart and _is_view(pattern, network):
            viewed = operand.substitute(pattern.index, pattern.position)
            return network.rewrite((pattern, operand), (viewed,))
    return None


def _is_view(pattern: Pattern, network: TensorNetwork) -> bool:
    """Tell whether all positions are inside and none is hit twice."""
    low, high = pattern.position.bounds(network.sizes)
    if low < 0 or high >= network.sizes[pattern.index]:
        return False
    terms = [(s, network.sizes[j]) for j, s in pattern.position.terms]
    if len(terms) < 2:
        return True
    if len(terms) > 2:
        return False
    (a, size_a), (b, size_b) = terms
    # a * x = b * y first meets at x = b / g, y = a / g
    common = gcd(a, b)
    return b // common >= size_a or a // common >= size_b
