"""Reports: tables and figures of the rows, in Markdown and SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

from experiments.harness.question import Question
from experiments.harness.store import load

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "tn_extensions"  # equal figures, equal files
matplotlib.rcParams["svg.fonttype"] = "none"


def write(name: str, question: Question, path: Path) -> Path:
    """Write a question's report beside the file of its rows; return its path."""
    rows = load(path)
    parts = [f"# {question.title}", f"`python -m experiments {name}`"]
    parts += [question.reading, machines(rows)]
    if question.claims:
        parts.append(markdown(check(question, rows)))
    for file, figure in _shown(question.figures, rows).items():
        target = path.with_name(f"{path.stem}-{file}.svg")
        figure.savefig(target, bbox_inches="tight", metadata={"Date": None})
        parts.append(f"![{file}]({target.name})")
    for title, table in _shown(question.tables, rows).items():
        parts.append(f"## {title}\n\n{markdown(table)}")
    left_out = missing(rows)
    if len(left_out):
        parts.append(f"## Not measured\n\n{markdown(left_out)}")
    report = path.with_suffix(".md")
    write_text(report, "\n\n".join(parts) + "\n")
    return report


def _shown(
    show: Callable[[pd.DataFrame], Mapping[str, Any]], rows: pd.DataFrame
) -> Mapping[str, Any]:
    """Make tables or figures; none if rows lack columns, as where all cases failed."""
    try:
        return show(rows)
    except KeyError:
        return {}


def overview(questions: Iterable[tuple[str, Question]], folder: Path) -> str:
    """List all questions: the command, the claims, and where reports lie."""
    parts = [_HEAD]
    for name, question in questions:
        parts.append(f"## {question.title}\n\n`python -m experiments {name}`")
        parts.append(question.reading)
        for path in sorted(folder.glob(f"{name}-*.jsonl")):
            rows = load(path)
            relative = f"results/{path.stem}"
            parts.append(f"[{_machine(rows)}]({relative}.md)")
            for figure in sorted(folder.glob(f"{path.stem}-*.svg")):
                parts.append(f"![{figure.stem}](results/{figure.name})")
            if question.claims:
                parts.append(markdown(check(question, rows)))
    return "\n\n".join(parts) + "\n"


_HEAD = """# Experiments

Each question below is answered by one command, which measures and writes rows
(`results/*.jsonl`), and a report of tables and figures beside them. `--quick` takes few
and small cases, `--only TEXT` those whose key has the text, `--resume` those that are
missing, `--device cuda` a GPU; `python -m experiments report` renders all reports, and
this page, from rows alone. `python -m experiments --help` says more.

A time is the median of at least five alternating rounds in one process, after the
results were compared. Ratios compare; seconds do not travel. Memory is the peak beyond
inputs and results, in a fresh process on CPU."""


def check(question: Question, rows: pd.DataFrame) -> pd.DataFrame:
    """Compare a question's claims with the rows."""
    return pd.DataFrame([claim.check(rows) for claim in question.claims])


def missing(rows: pd.DataFrame) -> pd.DataFrame:
    """List what was not measured, and why; equal reasons in a line."""
    if "reason" not in rows:
        return pd.DataFrame()
    left_out = rows[rows["reason"].notna()]
    names = [n for n in ("quantity", "contender") if n in left_out]
    columns = [*names, "reason"]
    counts = left_out[columns].fillna("").value_counts(sort=False)
    return counts.rename("cases").reset_index()


def machines(rows: pd.DataFrame) -> str:
    """Say in a sentence where rows were measured, with which versions."""
    about = rows.iloc[-1]
    revisions = ", ".join(sorted({str(each) for each in rows["git_revision"]}))
    return (
        f"{_machine(rows)}, torch {about['torch']}, Python {about['python']}, "
        f"{about['packages']}; {str(about['date'])[:10]}, revision {revisions}."
    )


def _machine(rows: pd.DataFrame) -> str:
    about = rows.iloc[-1]
    threads = f", {about['threads']} thread(s)" if about["device"] == "cpu" else ""
    return f"{about['device_name']}{threads}"


def markdown(table: pd.DataFrame) -> str:
    """Render a table; numbers have three digits."""
    frame = table.reset_index() if table.index.names != [None] else table
    head = ["" if name is None else _cell(name) for name in frame.columns]
    body = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_cell, value)).strip()
    if isinstance(value, float):
        if pd.isna(value):
            return ""
        return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return "" if value is None else str(value).replace("|", "\\|")


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: never is it half-written."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
