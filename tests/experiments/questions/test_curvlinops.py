"""Operators are compared, timed and weighed, ours beside stock's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tn_extensions.curvlinops as ours
from experiments.contenders import operators
from experiments.harness import machine
from experiments.harness.case import Options
from experiments.harness.run import run
from experiments.harness.store import Store, load
from experiments.questions import curvlinops, next_line
from experiments.questions.curvlinops import QUESTION
from experiments.subjects import networks
from experiments.subjects.networks import Subject, UNet
from tn_extensions.curvlinops.release import LINE

TINY, CPU = Subject("unet", 8), torch.device("cpu")
needs_released = pytest.mark.skipif(LINE != "3.0", reason="needs curvlinops 3.0")


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "UNet", partial(UNet, width=4))
    monkeypatch.setattr(curvlinops, "WORKLOADS", ((TINY, 2),))


def asked(question: Any, path: Path, wanted: str = "", quick: bool = False) -> Any:
    store = Store(path, machine.describe(CPU))
    options = Options(memory=False, quick=quick)
    run(question, options, store, lambda case: wanted in case.title)
    return load(path)


@needs_released
def test_stock_is_given_only_what_it_supports() -> None:
    model = TINY.plain()
    transposed = operators.parameters(model, nn.ConvTranspose2d)
    both = operators.supported(model)
    every = operators.supported(model, operators.OURS)
    assert len(both) == 12 and len(transposed) == 4
    assert {*map(id, every)} == {*map(id, [*both, *transposed.values()])}


@needs_released
@pytest.mark.parametrize("kind", operators.KINDS)
def test_rows_and_their_ratio(kind: str, tmp_path: Path) -> None:
    rows = asked(QUESTION, tmp_path / "rows.jsonl", kind)
    assert "reason" not in rows
    stages = ["build", "product", "exact inverse, first", "exact inverse, again"]
    if kind != "ekfac":
        stages[2:2] = ["inverse, first", "inverse, again"]
    assert list(rows["stage"].unique()) == stages
    built = rows[rows["stage"] == "build"].set_index("contender")
    assert list(built.index) == ["stock", "ours", "gradient", "ours, all layers"]
    assert (rows["kept_bytes"].dropna() > 0).all()
    tables = QUESTION.tables(rows)
    (time,) = tables["Building"].to_dict("records")
    seconds = built["seconds"]
    ratio = seconds["stock"] / seconds["ours"]
    assert time["stock over ours"] == pytest.approx(ratio)
    assert len(tables["Products"]) == len(stages) - 1
    assert list(QUESTION.figures(rows)) == ["building"]


@needs_released
def test_a_wrong_operator_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(ours.KFACLinearOperator):
        @property
        def trace(self) -> Any:
            return 1.01 * super().trace

    monkeypatch.setattr(ours, "KFACLinearOperator", Wrong)
    rows = asked(QUESTION, tmp_path / "rows.jsonl", "reduce")
    mine = rows[(rows["stage"] == "build") & (rows["contender"] == "ours")].iloc[0]
    assert mine["error"] == pytest.approx(0.01, rel=0.1)
    assert "relative error" in mine["reason"] and mine["seconds"] != mine["seconds"]


def test_backends_of_the_next_line(tmp_path: Path) -> None:
    rows = asked(next_line.QUESTION, tmp_path / "rows.jsonl", quick=True)
    if LINE == "3.0":
        assert "'3.0' is installed" in rows["reason"].item()
        return
    assert list(rows["contender"]) == ["hooks", "ours", "gradient"]
    assert "reason" not in rows
    seconds = rows.set_index("contender")["seconds"]
    table = next_line.QUESTION.tables(rows)["Time over ours"]
    ratio = seconds["hooks"] / seconds["ours"]
    assert table["hooks"].item() == pytest.approx(ratio)
