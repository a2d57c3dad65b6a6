"""What reports are made of: tables, numbers, and bars that are met or not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import mean, stdev

from experiments.bars import Verdict


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    head, *body = rows
    lines = (head, ["---"] * len(head), *body)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, factor: float = 1.0) -> str:
    """Three digits, or those before the point; empty for ``None``."""
    if value is None:
        return ""
    scaled = value * factor
    return f"{scaled:.3g}" if abs(scaled) < 1000 else f"{scaled:.0f}"


def spread(values: Sequence[float], factor: float = 1.0) -> str:
    """The mean, and the standard deviation where there is one."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return number(mean(values), factor)
    return f"{number(mean(values), factor)} +- {stdev(values) * factor:.2g}"


def error(value: float | None) -> str:
    """The order of magnitude of a deviation; empty for ``None``."""
    return "" if value is None else f"{value:.1e}"


def limit(verdict: Verdict) -> str:
    """The limit of a bar."""
    sign = ">=" if verdict.aim == "at least" else "<="
    return f"{sign} {number(verdict.limit)}"


def judged(verdict: Verdict) -> list[str]:
    """What was measured, and whether it meets the bar."""
    answers = {True: "yes", False: "**no**", None: "not measured"}
    return [number(verdict.value), answers[verdict.met]]


def bar_rows(verdicts: Iterable[Verdict]) -> list[list[str]]:
    """The table of bars that are met or not."""
    return [
        ["bar", "limit", "measured", "met"],
        *([v.text, limit(v), *judged(v)] for v in verdicts),
    ]
