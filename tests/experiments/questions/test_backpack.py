"""Backward passes are compared, timed and weighed, ours beside stock's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from backpack import extensions
from torch import nn

import tn_extensions.backpack as ours
from experiments.harness import machine
from experiments.harness.case import Options
from experiments.harness.run import run
from experiments.harness.store import Store, load
from experiments.questions.backpack import QUESTION, Pass, replaced
from experiments.subjects.networks import NUM_CLASSES, REPLACEABLE, Subject

TINY, CPU = Subject("3c3d"), torch.device("cpu")


def asked(path: Path, extension: str, memory: bool = False) -> Any:
    store = Store(path, machine.describe(CPU))
    options = Options(quick=True, memory=memory)
    run(QUESTION, options, store, lambda case: case.key["extension"] == extension)
    return load(path)


@pytest.mark.parametrize("network", NUM_CLASSES)
def test_networks_are_the_same_each_time_and_have_their_classes(network: str) -> None:
    subject = Subject(network)
    images, labels = subject.batch(2)
    with torch.no_grad():
        first, second = (subject.build()(images) for _ in range(2))
    assert first.shape == (2, NUM_CLASSES[network])
    assert torch.equal(first, second)
    assert labels.shape == (2,) and torch.equal(images, subject.batch(2)[0])


@pytest.mark.parametrize("pixels", [32, 80])
def test_replaced_modules_leave_the_function_as_it_is(pixels: int) -> None:
    subject, kinds = Subject("resnet18", pixels), REPLACEABLE["resnet18"]
    whole, without = subject.build(), subject.build(kinds)
    assert not any(isinstance(module, kinds) for module in without.modules())
    images, _ = subject.batch(2)
    with torch.no_grad():
        expected = whole(images)
        torch.testing.assert_close(without(images), expected, rtol=1e-3, atol=1e-3)
    # else the softmax saturates, and there is no curvature to measure
    assert expected.softmax(1).max() < 0.9


def test_only_what_stock_cannot_do_is_replaced() -> None:
    resnet = Subject("resnet18", 32)
    assert replaced("KFAC", resnet) == [nn.BatchNorm2d, nn.AdaptiveAvgPool2d]
    assert replaced("SqrtGGNMC", resnet) == [nn.AdaptiveAvgPool2d]
    assert replaced("BatchGrad", resnet) == [] == replaced("KFAC", TINY)


def test_passes_draw_the_same_samples_and_forget() -> None:
    make = partial(Pass, "backpack.extensions", "DiagGGNMC", TINY, 2, CPU)
    saved = []
    for one in (make(), make()):
        one.before()
        saved.append(one())
    assert len(saved[0]) == 12
    for name, value in saved[0].items():
        assert torch.equal(value, saved[1][name])
    one.before()
    parameters = list(one.model.parameters())
    assert not any(hasattr(p, "diag_ggn_mc") for p in parameters)
    assert all(p.grad is None for p in parameters)


def test_rows_and_their_ratio(tmp_path: Path) -> None:
    rows = asked(tmp_path / "rows.jsonl", "BatchGrad", memory=True)
    assert list(rows["contender"]) == ["stock", "ours", "plain"]
    assert "reason" not in rows
    stock, mine, plain = (row for _, row in rows.iterrows())
    tables = QUESTION.tables(rows)
    (time,) = tables["Time of a backward pass"].to_dict("records")
    assert time["stock over ours"] == pytest.approx(stock.seconds / mine.seconds)
    (held,) = tables["Memory beyond a plain pass, MiB"].to_dict("records")
    assert held["stock"] == pytest.approx(max(0, stock.bytes - plain.bytes) / 2**20)
    assert list(QUESTION.figures(rows)) == ["ratios"]


def test_a_wrong_extension_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(extensions.BatchGrad):
        def __call__(self, module: Any, g_inp: Any, g_out: Any) -> None:
            super().__call__(module, g_inp, [1.01 * g for g in g_out])

    monkeypatch.setattr(ours, "BatchGrad", Wrong)
    rows = asked(tmp_path / "rows.jsonl", "BatchGrad").set_index("contender")
    assert rows.loc["ours", "error"] == pytest.approx(0.01, rel=0.1)
    assert "relative error" in rows.loc["ours", "reason"]
    assert rows["seconds"].isna().to_dict() == {
        "stock": False,
        "ours": True,
        "plain": False,
    }
    # what is missing leaves gaps, not errors
    (time,) = QUESTION.tables(rows.reset_index())["Time of a backward pass"].index
    assert time[0] == "BatchGrad"
