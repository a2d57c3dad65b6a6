"""Several quantities of a layer are compared with each on its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.questions.together import FLOWS, QUESTION
from tests.experiments.questions.support import rows_of
from tn_extensions import functional


def test_rows(tmp_path: Path) -> None:
    rows = rows_of(QUESTION, tmp_path, lambda case: case.key["planning"] == "estimate")
    assert "reason" not in rows
    assert {*rows["flow"]} == {*FLOWS}
    seconds = rows.pivot_table("seconds", "flow", "contender")
    (claim,) = QUESTION.claims
    expected = (seconds["apart"] / seconds["together"]).min()
    assert claim.value(rows) == pytest.approx(expected)


def test_wrong_values_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*names: str, **given: object) -> list[torch.Tensor]:
        return [torch.zeros(1) for _ in names]

    monkeypatch.setattr(functional, "together", wrong)
    rows = rows_of(
        QUESTION, tmp_path, lambda case: case.title.startswith("KFAC, BatchL2Grad")
    )
    assert rows.set_index("contender").loc["together", "reason"].notna().all()
