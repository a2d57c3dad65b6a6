"""Names of layers, and patterns that select some of them."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from tn_extensions.errors import describe


def matches(pattern: str, name: str, module: nn.Module) -> bool:
    """Tell whether a pattern is the name of a module, of its class or one around it.

    Args:
        pattern: A regular expression of the whole name.
        name: Name of the module, with dots.
        module: The module.
    """
    parts = name.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    names.append(type(module).__name__)
    return any(re.fullmatch(pattern, each) for each in names)


def check_patterns(owner: str, argument: str, patterns: Any, model: nn.Module) -> None:
    """Refuse patterns that are misspelt.

    Args:
        owner: What the user called.
        argument: Its argument.
        patterns: As for :func:`matches`.
        model: The model, of which each must match a module of whatever kind.

    Raises:
        TypeError: If they are a single string, or hold what is no string.
        ValueError: If one is no regular expression, or matches nothing.
    """
    if isinstance(patterns, str):
        rule = "be a sequence of patterns"
        raise TypeError(describe(owner, argument, rule, repr(patterns)))
    modules = list(model.named_modules())
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (TypeError, re.error) as error:
            rule = f"hold regular expressions ({error})"
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(describe(owner, argument, rule, repr(pattern))) from None
        if not any(matches(pattern, *module) for module in modules):
            rule = "hold patterns that match names or classes of layers"
            names = ", ".join(repr(name) for name, _ in modules if name)
            remedy = f"Names are {names}" if names else ""
            raise ValueError(describe(owner, argument, rule, repr(pattern), remedy))
