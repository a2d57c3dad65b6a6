"""Mirror: a network that equals itself with primes exchanged is symmetric.

Then only one triangle of the result has to be computed.
"""

from __future__ import annotations

from tn_extensions.network.index import is_primed, mirrored, prime
from tn_extensions.network.network import TensorNetwork


def mirror(network: TensorNetwork) -> TensorNetwork:
    """The network with each index and its primed copy exchanged."""
    copied = {index for index in network.indices if prime(index) in network.sizes}

    def exchange(index: str) -> str:
        return mirrored(index) if is_primed(index) or index in copied else index

    return network.relabel(exchange)


def is_mirrored(network: TensorNetwork) -> bool:
    """Whether the result is symmetric under exchanging primed and unprimed axes."""
    image = mirror(network)
    return (
        any(is_primed(index) for index in network.indices)
        and image.nodes == network.nodes
        and image.sizes == network.sizes
        and sorted(image.output) == sorted(network.output)
    )
