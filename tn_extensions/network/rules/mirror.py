"""Mirror: a network that equals itself with primes exchanged has a symmetric result.

Only one triangle of the result has to be computed.
"""

from __future__ import annotations

from functools import lru_cache

from tn_extensions.network.index import is_primed, mirrored, prime
from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.nodes import Rename


def mirror(network: TensorNetwork) -> TensorNetwork:
    """Exchange each index of a network with its primed copy."""
    return network.relabel(exchange(network))


def exchange(network: TensorNetwork) -> Rename:
    """Return the renaming that exchanges each index with its primed copy."""
    names = {
        index: mirrored(index)
        for index in network.indices
        if is_primed(index) or prime(index) in network.sizes
    }
    return lambda index: names.get(index, index)


@lru_cache(maxsize=512)
def is_mirrored(network: TensorNetwork) -> bool:
    """Tell whether the result is symmetric if primed and unprimed are exchanged."""
    if not any(map(is_primed, network.indices)):
        return False
    image = exchange(network)
    if any(
        network.sizes.get(image(index)) != size for index, size in network.sizes.items()
    ):
        return False
    output = sorted(tuple(map(image, axis)) for axis in network.output)
    if output != sorted(network.output):
        return False
    nodes = [node.rename(image) for node in network.nodes]
    return sorted(nodes, key=lambda node: node.order) == list(network.nodes)
