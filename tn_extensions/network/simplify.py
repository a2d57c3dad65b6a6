"""Rewriting to a fixed point, with a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, overload

from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.rules.dense import dense
from tn_extensions.network.rules.identity import identity_of
from tn_extensions.network.rules.squeeze import squeeze
from tn_extensions.network.rules.trim import trim
from tn_extensions.network.rules.window_sum import window_sum
from tn_extensions.network.trace import Step, Trace

Rule = Callable[[TensorNetwork], TensorNetwork | None]

RULES: tuple[Rule, ...] = (squeeze, window_sum, trim, dense)
"""Rules that never raise the cost, in the order in which they are tried."""


@overload
def simplify(
    network: TensorNetwork, rules: Sequence[Rule] = ..., trace: Literal[False] = ...
) -> TensorNetwork: ...
@overload
def simplify(
    network: TensorNetwork, rules: Sequence[Rule] = ..., *, trace: Literal[True]
) -> tuple[TensorNetwork, Trace]: ...
def simplify(
    network: TensorNetwork, rules: Sequence[Rule] = RULES, trace: bool = False
) -> TensorNetwork | tuple[TensorNetwork, Trace]:
    """Apply rules until none applies.

    Each rule removes a node, an index or values of an index, so this terminates.

    Args:
        network: The network to rewrite.
        rules: The rules, tried in order. After one has been applied, the first one is
            tried again.
        trace: Whether to return the steps, too.

    Returns:
        The rewritten network, which is exactly equal to the given one. With ``trace``,
        also the steps that led to it; they can be printed and drawn.
    """
    given = network
    steps: list[Step] = []
    while True:
        for rule in rules:
            rewritten = rule(network)
            if rewritten is not None:
                name, why = rule.__name__, identity_of(rule)
                steps.append(Step(name, network, rewritten, why))
                network = rewritten
                break
        else:
            return (network, Trace(given, steps)) if trace else network
