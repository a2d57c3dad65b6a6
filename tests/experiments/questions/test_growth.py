"""Exponents are slopes of what was measured."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from experiments.questions.growth import QUESTION, exponents
from tests.experiments.questions.support import rows_of


def test_rows(tmp_path: Path) -> None:
    rows = rows_of(
        QUESTION,
        tmp_path,
        lambda case: case.title.startswith("ggn_diagonal, classes"),
    )
    assert "reason" not in rows
    assert {*rows["contender"]} == {"stock", "ours", "ours, measured"}
    assert {*rows["value"]} == {1, 3}


def test_powers_are_found() -> None:
    rows = pd.DataFrame(
        {"quantity": "q", "axis": axis, "contender": name, "value": x, "seconds": y}
        for axis, name, power in (("side", "ours", 1.5), ("batch", "stock", 2.0))
        for x in (1, 2, 4, 8)
        for y in [3.0 * x**power]
    )
    found = exponents(rows, "seconds")
    assert found.loc[("q", "side"), "ours"] == pytest.approx(1.5)
    assert found.loc[("q", "batch"), "stock"] == pytest.approx(2)
    one_value = rows[rows["value"] == 1]
    assert not len(exponents(one_value, "seconds"))
