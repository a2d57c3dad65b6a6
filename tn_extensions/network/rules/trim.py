"""Trim: positions that a pattern never hits can be dropped, for any hyper-parameters.

With a stride and without overlap, every ``g``-th input position is left, so that
down-sampling becomes dense. With padding, outputs that only read zeros are dropped.
"""

from __future__ import annotations

from math import gcd

from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.nodes import Affine, Node, Operand, Pattern
from tn_extensions.network.rules.identity import states


@states("P[i; o, k] = 0 outside of low, low + step, ..., high")
def trim(network: TensorNetwork) -> TensorNetwork | None:
    """Narrow one summed index to the positions that contribute; None if all do."""
    for index in network.summed_indices:
        carriers = network.carriers(index)
        patterns = [node for node in carriers if isinstance(node, Pattern)]
        if patterns and all(isinstance(node, Operand | Pattern) for node in carriers):
            narrowed = _narrow(network, index, patterns)
            if narrowed is not None:
                return narrowed
    return None


def _narrow(
    network: TensorNetwork, index: str, patterns: list[Pattern]
) -> TensorNetwork | None:
    size = network.sizes[index]
    hulls = [pattern.hull(index, network.sizes) for pattern in patterns]
    if any(hull is None for hull in hulls):
        return None  # the network is zero, which no view can express
    low = max(hull[0] for hull in hulls if hull)
    high = min(hull[1] for hull in hulls if hull)
    step = _step(index, patterns, low)
    count = (high - low) // step + 1
    if count < 1 or (low, step, count) == (0, 1, size):
        return None
    position = Affine(((index, step),), low)

    def narrow(node: Node) -> Node:
        assert isinstance(node, Operand | Pattern)
        return node.substitute(index, position)

    carriers = network.carriers(index)
    return network.rewrite(carriers, map(narrow, carriers), sizes={index: count})


def _step(index: str, patterns: list[Pattern], low: int) -> int:
    """Return the common spacing of the hit positions; 1 if the index is a term."""
    if any(pattern.index != index for pattern in patterns):
        return 1
    step = 0
    for pattern in patterns:
        strides = [s for _, s in pattern.position.terms]
        strides += [s for s, _ in pattern.summed]
        step = gcd(step, pattern.position.start - low, *strides)
    return max(step, 1)
