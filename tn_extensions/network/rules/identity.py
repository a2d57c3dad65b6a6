"""Rules say which identity they use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

RuleT = TypeVar("RuleT", bound=Callable[..., Any])


def states(identity: str) -> Callable[[RuleT], RuleT]:
    """Mark a rule with its identity, which a trace of its applications shows.

    Args:
        identity: An equation, in plain text.
    """

    def mark(rule: RuleT) -> RuleT:
        rule.__dict__["identity"] = identity
        return rule

    return mark


def identity_of(rule: Callable[..., Any]) -> str:
    """The identity of a rule; empty if it is not marked."""
    return str(getattr(rule, "identity", ""))
