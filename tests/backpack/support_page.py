"""The support table: outcomes as Markdown, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Outcome(NamedTuple):
    """The outcome of an extension on a case.

    Args:
        verdict: ``"yes"``, ``"no (TypeError)"`` and the like, or ``"WRONG"``.
        reason: The message of the exception or the warning.
    """

    verdict: str
    reason: str = ""


YES = Outcome("yes")
WRONG = Outcome("**WRONG**", "neither an exception nor a warning")
LACKING = Outcome("-")
"""Of an extension that BackPACK does not have."""


class Place(NamedTuple):
    """The place of an outcome.

    Args:
        table: Title of the table.
        row: Name of the case.
        extension: Name of the extension.
        variant: Number of dimensions, or nothing where there is one variant only.
    """

    table: str
    row: str
    extension: str
    variant: str


Pair = tuple[Outcome, Outcome]
"""Ours and stock's."""
Outcomes = dict[Place, Pair]
Cells = dict[tuple[str, str, str], str]
"""By table, label of the row, and extension."""


def cells(outcomes: Outcomes) -> Cells:
    """Return the text of each cell, with the variants of a case in one."""
    grouped: dict[tuple[str, str, str], dict[str, Pair]] = {}
    for place, pair in outcomes.items():
        grouped.setdefault(place[:3], {})[place.variant] = pair
    return {
        (table, label(row, list(pairs)), extension): " / ".join(
            _merged({variant: pair[side].verdict for variant, pair in pairs.items()})
            for side in (0, 1)
        )
        for (table, row, extension), pairs in grouped.items()
    }


def label(row: str, variants: Sequence[str]) -> str:
    """Return a row's name, with its dimensions unless it has all."""
    some = variants != [""] and variants != ["1d", "2d", "3d"]
    return f"{row} ({', '.join(variants)})" if some else row


def _merged(verdicts: dict[str, str]) -> str:
    """Write one verdict, or those that differ with their dimensions."""
    by_verdict: dict[str, list[str]] = {}
    for variant, verdict in verdicts.items():
        by_verdict.setdefault(verdict, []).append(variant)
    if len(by_verdict) == 1:
        return next(iter(by_verdict))
    return ", ".join(f"{', '.join(v)}: {verdict}" for verdict, v in by_verdict.items())


def table_of(found: Cells, title: str) -> list[str]:
    """Write a Markdown table; extensions with equal columns share one."""
    chosen = {key[1:]: text for key, text in found.items() if key[0] == title}
    rows = _unique(row for row, _ in chosen)
    columns: dict[tuple[str, ...], list[str]] = {}
    for name in _unique(name for _, name in chosen):
        column = tuple(chosen[row, name] for row in rows)
        columns.setdefault(column, []).append(name)
    head = ["", *("<br>".join(names) for names in columns.values())]
    body = [[row, *texts] for row, *texts in zip(rows, *columns, strict=True)]
    return markdown([head, *body])


def reasons(outcomes: Outcomes) -> list[str]:
    """Write a Markdown table of what ours does not support, with the messages."""
    names: dict[tuple[str, str, str], list[str]] = {}
    messages: dict[tuple[str, str, str], str] = {}
    for place, (own, _) in outcomes.items():
        if own != YES:
            key = place.table, place.row, own.verdict
            names.setdefault(key, []).append(place.extension)
            message = " ".join(own.reason.split()).replace("|", "\\|")
            messages.setdefault(key, message)
    if not names:
        return ["Nothing."]
    rows = [
        [f"{key[0]}: {key[1]}", ", ".join(_unique(found)), key[2], messages[key]]
        for key, found in names.items()
    ]
    return markdown([["case", "extensions", "outcome", "message of the first"], *rows])


def read(text: str) -> Cells:
    """Cells of a page that was made of tables."""
    result: Cells = {}
    for section in text.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        table = [_split(line) for line in lines if line.startswith("| ")]
        if not table or table[0][0]:
            continue  # not a table of extensions
        head, _, *body = table
        for label, *texts in body:
            for names, text in zip(head[1:], texts, strict=True):
                for name in names.split("<br>"):
                    result[title, label, name] = text
    return result


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, the first row being its head."""
    head, *body = rows
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


def _split(line: str) -> list[str]:
    return [part.strip() for part in line.strip().strip("|").split(" | ")]


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
