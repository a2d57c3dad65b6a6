"""Names of layers, and patterns that select some of them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn


def matches(pattern: str, name: str, module: nn.Module) -> bool:
    """Whether a pattern is a module's name, that of one around it, or of its class.

    Args:
        pattern: A regular expression of the whole name.
        name: Name of the module, with dots.
        module: The module.
    """
    parts = name.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    names.append(type(module).__name__)
    return any(re.fullmatch(pattern, each) for each in names)


def unmatched(patterns: Iterable[str], model: nn.Module) -> list[str]:
    """Patterns that select no module of a model, of whatever kind: misspelt, probably.

    Args:
        patterns: As for :func:`matches`.
        model: The model.
    """
    modules = list(model.named_modules())
    return [
        pattern
        for pattern in patterns
        if not any(matches(pattern, *module) for module in modules)
    ]
