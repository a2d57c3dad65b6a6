"""Identities of rules, for the traces of simplifications."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

RuleT = TypeVar("RuleT", bound=Callable[..., Any])


def states(identity: str) -> Callable[[RuleT], RuleT]:
    """Attach an identity to a rule, for traces to show.

    Args:
        identity: An equation, in plain text.

    Returns:
        A decorator that returns the rule itself.
    """

    def mark(rule: RuleT) -> RuleT:
        rule.__dict__["identity"] = identity
        return rule

    return mark


def identity_of(rule: Callable[..., Any]) -> str:
    """Return the identity of a rule; empty if it has none."""
    return str(getattr(rule, "identity", ""))
