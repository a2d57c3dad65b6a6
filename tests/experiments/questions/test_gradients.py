"""Gradients of samples: contenders agree, wrong ones are told, ratios are of times."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from experiments.contenders.quantities import (
    CONTENDERS,
    MAIN,
    Asked,
    Tensors,
    contest,
    reference,
)
from experiments.harness.case import Options
from experiments.harness.measure import Call
from experiments.questions import gradients
from experiments.subjects.layers import Layer
from tests.experiments.questions.support import rows_of
from tn_extensions import Conv

CPU = torch.device("cpu")
DENSE = Layer("none", Conv.make(2, 3, 3, (5, 4), (2, 1), 1))
GROUPED = Layer("none", Conv.make(4, 6, 3, (5, 5), 1, 1, groups=2))


@pytest.mark.parametrize("layer", [DENSE, GROUPED])
@pytest.mark.parametrize("quantity", MAIN)
def test_contenders_agree(quantity: str, layer: Layer) -> None:
    asked = Asked(quantity, layer, 3, 2)
    rows = contest(asked, CPU, timed=False).rows(Options(memory=False))
    found = {row["contender"]: row for row in rows}
    assert {*found} == {*CONTENDERS[quantity]} > {"ours", "ours, measured"}
    if layer is DENSE:
        assert not any("reason" in row for row in found.values())
    assert found["ours"]["error"] < 1e-5


def test_reference_is_the_jacobians() -> None:
    asked = Asked("per_sample_grad", GROUPED, 3)
    x, g = (each.double() for each in asked.tensors(CPU).values())
    module = GROUPED.module("cpu").double()
    expected = [
        torch.autograd.grad((module(x[n : n + 1])[0] * g[n]).sum(), module.weight)[0]
        for n in range(3)
    ]
    assert_close(reference(asked, asked.tensors(CPU)), torch.stack(expected))
    asked = asked._replace(quantity="per_sample_grad_norm")
    norms = reference(asked, asked.tensors(CPU))
    assert_close(norms, torch.stack(expected).flatten(1).square().sum(1))


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(asked: Asked, tensors: Tensors) -> Call:
        return lambda: torch.zeros(1)

    def fails(asked: Asked, tensors: Tensors) -> Call:
        raise IndexError("not for this layer")

    stock = CONTENDERS["per_sample_grad"]
    monkeypatch.setitem(stock, "torch.func", wrong)
    monkeypatch.setitem(stock, "Opacus", fails)
    found = rows_of(
        gradients.QUESTION,
        tmp_path,
        lambda case: case.title.startswith("per_sample_grad, 2c2d, 32"),
    )
    rows = found.set_index("contender")
    assert "shape" in rows.loc["torch.func", "reason"]
    assert rows.loc["Opacus", "reason"] == "IndexError: not for this layer"
    able = rows[rows["reason"].isna()]
    assert {*able.index} == {
        "BackPACK",
        "BackPACK, saving memory",
        "ours",
        "ours, measured",
    }
    (ratio,) = gradients.ratios(found)["BackPACK"]
    seconds = rows["seconds"]
    assert ratio == pytest.approx(seconds["BackPACK"] / seconds["ours, measured"])


def test_stock_can_hold_its_gradients() -> None:
    cases = list(gradients.QUESTION.cases(Options()))
    assert len({tuple(case.key.values()) for case in cases}) == len(cases)
    for case in cases:
        channels = case.key["layer"].partition("x")[0].split("-")
        size = int(channels[0]) * int(channels[1]) * 9
        assert max(case.key["num_vectors"], 1) * case.key["batch_size"] * size < 2.6e9
