"""Names of layers, and patterns that select some of them."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from tn_extensions.errors import describe


def matches(pattern: str, name: str, module: nn.Module) -> bool:
    """Tell whether a pattern matches a module, its class, or a module around it.

    Args:
        pattern: A regular expression for the whole name.
        name: Name of the module, with dots.
        module: The module.

    Returns:
        True if it matches one of the names.
    """
    parts = name.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    names.append(type(module).__name__)
    return any(re.fullmatch(pattern, each) for each in names)


def check_patterns(owner: str, argument: str, patterns: Any, model: nn.Module) -> None:
    """Check that patterns are valid and that each matches a module.

    Args:
        owner: Name of the caller, for errors.
        argument: Its argument.
        patterns: Patterns, as for :func:`matches`.
        model: The model. Each pattern must match one of its modules, of any kind.

    Raises:
        TypeError: If ``patterns`` is a string, or an entry is not a string.
        ValueError: If a pattern is not a regular expression, or matches no module.
    """
    if isinstance(patterns, str):
        rule = "be a sequence of patterns"
        raise TypeError(describe(owner, argument, rule, repr(patterns)))
    modules = list(model.named_modules())
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (TypeError, re.error) as error:
            rule = f"be regular expressions ({error})"
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(describe(owner, argument, rule, repr(pattern))) from None
        if not any(matches(pattern, *module) for module in modules):
            rule = "match names or classes of layers"
            names = ", ".join(repr(name) for name, _ in modules if name)
            remedy = f"Names are {names}" if names else ""
            raise ValueError(describe(owner, argument, rule, repr(pattern), remedy))
