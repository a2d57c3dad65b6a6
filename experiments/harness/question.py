"""Questions: what to measure for an answer, and how to read the rows."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from experiments.harness.case import Case, Options

Value = Callable[[pd.DataFrame], float]
"""Reads a number off the rows; ``nan`` if they do not have it."""


@dataclass(frozen=True)
class Claim:
    """Something that should hold, and that a report checks.

    Args:
        text: The claim.
        value: What is measured.
        sense: Whether the value should be at least or at most the limit.
        limit: The limit.
    """

    text: str
    value: Value
    sense: Literal["at least", "at most"]
    limit: float

    def check(self, rows: pd.DataFrame) -> dict[str, Any]:
        """Compare; a line of a table."""
        try:
            value = float(self.value(rows))
        except (KeyError, IndexError, ValueError, AttributeError):
            value = math.nan  # rows of few cases lack columns
        holds = value >= self.limit if self.sense == "at least" else value <= self.limit
        verdict = "not measured" if math.isnan(value) else "yes" if holds else "**no**"
        wanted = f"{self.sense} {self.limit:g}"
        return {
            "claim": self.text,
            "wanted": wanted,
            "measured": value,
            "holds": verdict,
        }


@dataclass(frozen=True)
class Question:
    """A question that is answered by measuring.

    Args:
        text: The question in a line; then, after an empty line, what the tables and
            figures show, and what to look for.
        cases: Lists what to measure. Must be cheap: a case makes its inputs itself.
        tables: Makes tables of the rows, by their titles.
        figures: Makes matplotlib figures of the rows, by file name.
        claims: What should hold.
    """

    text: str
    cases: Callable[[Options], Iterable[Case]]
    tables: Callable[[pd.DataFrame], Mapping[str, pd.DataFrame]]
    figures: Callable[[pd.DataFrame], Mapping[str, Any]] = lambda rows: {}
    claims: tuple[Claim, ...] = ()

    @property
    def title(self) -> str:
        """The question."""
        return self.text.partition("\n")[0]

    @property
    def reading(self) -> str:
        """The text below the question, in a line."""
        return " ".join(inspect.cleandoc(self.text.partition("\n")[2]).split())
