"""What tests of questions share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from experiments.harness import machine
from experiments.harness.case import Case, Options
from experiments.harness.question import Question
from experiments.harness.run import run
from experiments.harness.store import Store, load


def rows_of(
    question: Question,
    folder: Path,
    wanted: Callable[[Case], bool] = lambda case: True,
    memory: bool = False,
) -> pd.DataFrame:
    """Run some of a question's quick cases; all of its tables and figures are made."""
    path = folder / "rows.jsonl"
    store = Store(path, machine.describe(torch.device("cpu")))
    run(question, Options(quick=True, memory=memory), store, wanted)
    rows = load(path)
    assert len(question.tables(rows))
    question.figures(rows)
    for claim in question.claims:
        claim.check(rows)
    return rows
