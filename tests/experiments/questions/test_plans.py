"""Choices of plans are compared with all candidates."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.contenders.quantities import MAIN, VARIOUS
from experiments.harness.case import Options
from experiments.questions.plans import QUESTION, SWEEPS, choices
from tests.experiments.questions.support import rows_of


def test_choices_are_compared_with_the_fastest(tmp_path: Path) -> None:
    rows = rows_of(
        QUESTION,
        tmp_path,
        lambda case: case.key["quantity"] == "kfac_expand",
    )
    assert "reason" not in rows
    for _, of_case in rows.groupby(["sweep", "value"]):
        for mode in ("estimate", "measure"):
            (own,) = of_case[of_case[f"chosen by {mode}"]]["seconds"]
            key = (of_case.iloc[0]["sweep"], of_case.iloc[0]["value"])
            found = choices(rows).loc[key][f"{mode}: times the fastest"].item()
            assert found == pytest.approx(own / of_case["seconds"].min())
    assert {*rows["sweep"]} == {"", "kfac_expand over pixels"}


def test_layers_are_of_many_kinds() -> None:
    assert {layer.conv.num_dims for layer in VARIOUS} == {1, 2, 3}
    cases = list(QUESTION.cases(Options()))
    points = sum(map(len, SWEEPS.values()))
    assert len(cases) == len(VARIOUS) * len(MAIN) + points
    assert len({tuple(case.key.values()) for case in cases}) == len(cases)
