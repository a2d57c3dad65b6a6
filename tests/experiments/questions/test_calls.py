"""What calls cost beyond their arithmetic, on a small layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.questions.calls import BUSY, QUESTION
from tests.experiments.questions.support import rows_of


def test_rows(tmp_path: Path) -> None:
    rows = rows_of(
        QUESTION, tmp_path, lambda case: case.key["quantity"] == "kfac_reduce"
    )
    assert "reason" not in rows
    parts = rows.set_index("part")
    assert parts.loc["operators", "operators"] >= 1
    assert parts.loc["planning", "seconds"] > 0
    bookkeeping = parts.loc["bookkeeping"]
    assert bookkeeping["beyond_seconds"] < bookkeeping["seconds"]
    seconds = parts.loc["busy core"].set_index("contender")["seconds"]
    (ratio,) = BUSY.of(rows[rows["part"] == "busy core"])
    assert ratio == pytest.approx(seconds["stock"] / seconds["ours"])
    assert all(
        claim.check(rows)["holds"] != "not measured" for claim in QUESTION.claims
    )
