"""Rules, exact identities: ``TensorNetwork -> TensorNetwork | None``, one per file.

The swap ``P(s, d)[k, o, i] = P(d, s)[o, k, i]`` needs no rule: a pattern's terms are
unordered, so both sides are the same node.
"""

from tn_extensions.network.rules.dense import dense
from tn_extensions.network.rules.mirror import is_mirrored, mirror
from tn_extensions.network.rules.pair import pair, pairable
from tn_extensions.network.rules.squeeze import squeeze
from tn_extensions.network.rules.trim import trim
from tn_extensions.network.rules.window_sum import window_sum

__all__ = [
    "dense",
    "is_mirrored",
    "mirror",
    "pair",
    "pairable",
    "squeeze",
    "trim",
    "window_sum",
]
