"""The questions, a module each; its ``QUESTION`` is found by the module's name."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from experiments.harness.question import Question

NAMES = tuple(sorted(module.name for module in iter_modules(__path__)))
"""Names of all questions."""


def find(name: str) -> Question:
    """Import a question by its name."""
    question: Question = import_module(f"{__name__}.{name}").QUESTION
    return question
