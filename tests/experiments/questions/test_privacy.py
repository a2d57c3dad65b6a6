"""DP-SGD with Opacus alone, and with our samplers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.questions import privacy
from experiments.subjects.networks import Subject
from tests.experiments.questions.support import rows_of


def test_rows(tmp_path: Path) -> None:
    rows = rows_of(privacy.QUESTION, tmp_path)
    assert "reason" not in rows
    steps = rows[rows["part"] == "step"].set_index("contender")
    assert [*steps.index] == [*privacy.CONTENDERS]
    assert (steps["seconds"] > 0).all()
    trained = rows[rows["part"] == "training"].set_index("contender")
    assert trained["accuracy"].between(0, 1).all()
    spent = trained["epsilon"].drop(privacy.PLAIN)
    assert trained.loc[privacy.PLAIN].isna()["epsilon"]
    # the budget depends on the noise only, not on who computes gradients
    assert spent.nunique() == 1


def test_gradients_that_are_not_clipped_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(privacy, "LARGEST_NORM", 1e-2)
    clipped = privacy.clipped
    monkeypatch.setattr(
        privacy, "clipped", lambda *given: [2 * each for each in clipped(*given)]
    )
    arguments = (Subject("3c3d"), 2, torch.device("cpu"))
    with pytest.raises(ArithmeticError, match="error"):
        privacy.build_step("hooks, ours", *arguments)
