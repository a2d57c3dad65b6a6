"""The demo trains, plots, accepts correct factors and finds wrong ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from experiments import demo
from experiments.demo import compare, main, train_all
from experiments.subjects.images import Images, digits
from experiments.subjects.training import Setting, small_cnn
from tn_extensions.backpack import KFAC

Batch = tuple[nn.Sequential, Tensor, Tensor]


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 3),
    )
    return model, torch.randn(5, 2, 8, 8), torch.tensor([0, 1, 2, 0, 1])


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_measured", lambda *_: {"difference": 0.0})


def test_correct_factors_agree_and_are_measured(batch: Batch) -> None:
    strided, grouped = compare(*batch).to_dict("records")
    for row in (strided, grouped):
        assert row["difference"] < demo.TOLERANCE
        assert row["time"] > 0 and row["plan"]
    assert strided["compared with"] == "stock" and strided["layer"] == "2-4x8 k3 s2"
    assert grouped["compared with"] == "unfolding"


@pytest.mark.usefixtures("unmeasured")
def test_wrong_factors_are_found(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "KFAC", partial(KFAC, mc_samples=2))
    assert compare(*batch)["difference"].max() > 1e-3


@pytest.mark.parametrize(("difference", "code"), [(1e-6, 0), (1e-3, 1), (None, 1)])
def test_exit_code_and_plot(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    difference: float | None,
    code: int,
) -> None:
    data = digits()
    few = Images(data.name, data.train.first(64), data.test.first(16))
    monkeypatch.setattr(demo, "digits", lambda: few)
    found = pd.DataFrame({"difference": [difference]}, ["dense"], dtype=float)
    monkeypatch.setattr(demo, "compare", lambda *_: found)
    output = tmp_path / "plot.svg"
    line = ["--epochs", "1", "--batch-size", "16", "--output", str(output)]
    assert main(line) == code
    printed = capsys.readouterr().out
    assert ("more than rounding: dense" in printed) == bool(code)
    assert "KFAC-reduce" in printed and output.stat().st_size


def test_all_optimizers_train_with_a_bar_each(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = digits()
    few = Images(data.name, data.train.first(64), data.test.first(32))
    setting = Setting(few, 48, partial(small_cnn, data.pixels, 4), 6, 64, 32)
    models, rows = train_all(setting)
    losses = {row["contender"]: row["loss"] for row in rows}
    kinds = ["SGD", "AdamW", "KFAC-expand", "KFAC-reduce"]
    assert [*losses] == kinds and len(models) == 4
    bars = capsys.readouterr().err
    assert all(kind in bars for kind in kinds) and bars.count("48/48") >= len(kinds)
    # 48 steps on 64 images: KFAC is far ahead
    assert max(losses[kind] for kind in kinds[2:]) < 0.5 * losses["SGD"]
