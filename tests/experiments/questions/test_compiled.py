"""What is compiled computes the same, and breaks are counted."""

from __future__ import annotations

from pathlib import Path

import torch

from experiments.questions.compiled import QUESTION
from tests.experiments.questions.support import rows_of


def test_rows(tmp_path: Path) -> None:
    torch.compiler.reset()
    rows = rows_of(QUESTION, tmp_path)
    assert "reason" not in rows
    graphs = rows.pivot_table("graphs", "part", "contender")
    factors, passes = (
        graphs.loc["kfac_expand of 2c2d"],
        graphs.filter(like="3c3d", axis=0),
    )
    assert factors[["eager", "operators", "compiled"]].tolist() == [0, 0, 1]
    assert passes["compiled"].item() == 1
    assert passes["compiled with hooks"].item() != 1
