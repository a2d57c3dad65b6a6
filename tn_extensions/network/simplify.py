"""Rewriting to a fixed point, with a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, overload

from tn_extensions.network.network import TensorNetwork
from tn_extensions.network.rules import dense, squeeze, trim, window_sum

Rule = Callable[[TensorNetwork], TensorNetwork | None]

RULES: tuple[Rule, ...] = (squeeze, window_sum, trim, dense)
"""Rewrites that never cost anything, in the order in which they are tried."""


@dataclass(frozen=True)
class Step:
    """One application of a rule."""

    rule: str
    before: TensorNetwork
    after: TensorNetwork

    def __str__(self) -> str:
        return f"{self.rule}: {self.before.equation()} => {self.after.equation()}"


@overload
def simplify(
    network: TensorNetwork, rules: Sequence[Rule] = ..., trace: Literal[False] = ...
) -> TensorNetwork: ...
@overload
def simplify(
    network: TensorNetwork, rules: Sequence[Rule] = ..., *, trace: Literal[True]
) -> tuple[TensorNetwork, tuple[Step, ...]]: ...
def simplify(
    network: TensorNetwork, rules: Sequence[Rule] = RULES, trace: bool = False
) -> TensorNetwork | tuple[TensorNetwork, tuple[Step, ...]]:
    """Apply rules until none applies.

    Each rule removes a node, an index or entries of an index, so this ends.

    Args:
        network: What to rewrite.
        rules: The rewrites, tried in order; the first that applies starts over.
        trace: Whether to return the steps, too.

    Returns:
        The rewritten network, an exact equal of the given one; with ``trace`` also the
        steps that led to it.
    """
    steps: list[Step] = []
    while True:
        for rule in rules:
            rewritten = rule(network)
            if rewritten is not None:
                steps.append(Step(rule.__name__, network, rewritten))
                network = rewritten
                break
        else:
            return (network, tuple(steps)) if trace else network
