"""Steps with curvature are compared before they are timed."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from experiments.contenders import optimizers
from experiments.contenders.optimizers import (
    FirstSteps,
    KFACTraining,
    Results,
    compare,
)
from experiments.harness.case import Options
from experiments.questions import processes
from experiments.questions.optimizers import METHODS, QUESTION, averages, steps
from experiments.subjects import networks
from tn_extensions.kronecker.factors import is_low_rank

QUICK = Options(quick=True, memory=False)


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 8, (3, 2), padding=(0, 1)),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_three_c_three_d", tiny)


def measured(*parts: str) -> dict[str, dict[str, Any]]:
    """Rows of the one case whose title has all parts, by contender."""
    titles = {case.title: case for case in QUESTION.cases(QUICK)}
    (found,) = (own for title, own in titles.items() if all(p in title for p in parts))
    return {row["contender"]: row for row in found.measure(QUICK)}


@pytest.mark.parametrize("method", METHODS)
def test_contenders_agree_and_are_timed(method: str) -> None:
    pytest.importorskip("singd")
    pytest.importorskip("asdl")
    kind = method.partition("-")[0]
    rows = measured(method, "factors" if kind == "factors" else "everything")
    assert "error" not in rows.pop("SGD")  # it computes no curvature
    assert len(rows) == 2
    for row in rows.values():
        assert row["error"] < 1e-3 and row["seconds"] > 0 and "reason" not in row


@pytest.mark.parametrize("name", ["add_input_factor", "add_gradient_factor"])
def test_wrong_factors_are_not_timed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(optimizers, name)
    monkeypatch.setattr(optimizers, name, lambda *args: right(*args).mul_(1.002))
    ours = measured("KFAC-expand", "everything")["ours"]
    assert ours["error"] > 1e-3 and "relative error" in ours["reason"]
    assert "seconds" not in ours


def after_a_step(**options: Any) -> Results:
    torch.manual_seed(0)
    batch = torch.randn(4, 3, 32, 32), torch.arange(4)
    return KFACTraining(tiny(), batch, **options)().results()


def test_gradients_differ_by_what_damping_allows() -> None:
    exact = after_a_step()
    assert compare(after_a_step(is_stock=True), exact) < 1e-5
    allowed = 2 * max(map(optimizers._amplified, exact.curvature, exact.curvature))
    assert allowed < 0.1  # there is little else than rounding
    for share in (0.5, 1.5):
        found = [(1 + share * allowed) * each for each in exact.gradients]
        if share < 1:
            assert compare(exact._replace(gradients=found), exact) == 0
            continue
        with pytest.raises(ArithmeticError, match="preconditioned gradients"):
            compare(exact._replace(gradients=found), exact)


def test_what_stays_is_weighed() -> None:
    build = partial(KFACTraining, tiny(), (torch.randn(4, 3, 32, 32), torch.arange(4)))
    steps = FirstSteps(lambda small: build())
    trainings = []
    for _ in range(2):
        steps.before()
        trainings.append(steps._training)
        assert not trainings[-1].layers["6"].averages
        steps()
        assert trainings[-1].preconditioner.steps == 2
    assert trainings[0] is not trainings[1]


def tensors(averages: list[list[Tensor]]) -> list[Tensor]:
    return [own.clone() for of_layer in averages for own in of_layer]


@pytest.mark.parametrize("side", [True, False])
def test_steps_renew_what_is_asked(side: bool) -> None:
    batch = torch.randn(4, 3, 32, 32), torch.arange(4)
    for update in ("nothing", "factors", "everything"):
        training = KFACTraining(tiny(), batch, update, side, approx="reduce")
        training()
        layer = training.layers["6"]
        assert not is_low_rank(layer.averages["inputs"])
        inverse, before = layer.inverse, tensors(training.averages())
        training()
        same = all(map(torch.equal, tensors(training.averages()), before))
        assert same == (update == "nothing")
        assert (layer.inverse is not inverse) == (update == "everything")


def test_stock_factors_are_of_curvlinops(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = torch.randn(4, 3, 32, 32), torch.arange(4)
    called: list[str] = []
    for name in ("extract_patches", "extract_averaged_patches"):
        stock = getattr(optimizers, name)
        monkeypatch.setattr(
            optimizers,
            name,
            lambda *args, name=name, stock=stock: called.append(name) or stock(*args),
        )
    for approx in ("expand", "reduce"):
        KFACTraining(tiny(), batch, is_stock=False, approx=approx)()
    assert not called
    for approx in ("expand", "reduce"):
        KFACTraining(tiny(), batch, is_stock=True, approx=approx)()
    assert called == ["extract_patches"] * 2 + ["extract_averaged_patches"] * 2


@pytest.mark.parametrize(
    ("module", "method", "stock"),
    [("asdl", "factors-expand", "ASDL"), ("singd.optim", "SINGD-reduce", "stock")],
)
def test_missing_toolkits_are_a_reason(
    module: str, method: str, stock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [each for each in sys.modules if each.startswith(module)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    update = "factors" if stock == "ASDL" else "everything"
    row = measured(method, update)[stock]
    assert row["reason"] and "seconds" not in row


def test_steps_are_averaged_over_intervals() -> None:
    seconds = {"nothing": (1.0, 2.0, 3.0), "everything": (1.0, 22.0, 13.0)}
    rows = pd.DataFrame(
        {
            "network": "a",
            "method": "m",
            "update": update,
            "contender": name,
            "seconds": s,
        }
        for update, times in seconds.items()
        for name, s in zip(("SGD", "ours", "stock"), times, strict=True)
    )
    (beyond,) = steps(rows).query("update == 'everything'")["the same, beyond SGD"]
    assert beyond == pytest.approx(12 / 21)
    (row,) = averages(rows).to_dict("records")
    assert row["ours, every 1"] == 22 and row["ours, every 10"] == 4
    assert row["stock, every 10"] == 4 and row["stock, every 100"] == 3.1


# -- several processes


def test_processes_step_alike() -> None:
    (case,) = (
        own
        for own in processes.QUESTION.cases(QUICK)
        if own.key == {"part": "here", "processes": 2, "fraction": 0.0}
    )
    seconds = {row["contender"]: row["seconds"] for row in case.measure(QUICK)}
    assert list(seconds) == ["SGD", "nothing", "factors", "everything"]
    assert min(seconds.values()) > 0


def test_costs_on_paper_follow_formulas() -> None:
    layers = processes.layers_of("resnet18")
    assert len(layers) == 21
    one = processes.costs(layers, 1, 1.0)
    names = ("MB factors", "MB inverses", "MB gradients", "communication ms a step")
    assert not any(one[name] for name in names)
    sizes = [d for own in layers for _, d, _ in own.factor_shapes.values()]
    assert one["inversion ms"] == pytest.approx(sum(d**3 for d in sizes) / 1e9)
    for size in (4, 64):
        none, half, every = (
            processes.costs(layers, size, fraction) for fraction in (0.0, 0.5, 1.0)
        )
        triangles = sum(2 * d * (d + 1) for d in sizes)
        expected = 2 * (size - 1) / size * triangles / 1e6
        assert none["MB factors"] == pytest.approx(expected)
        assert none["MB inverses"] == every["MB gradients"] == 0
        assert 0 < half["MB inverses"] < every["MB inverses"]
        assert 0 < half["MB gradients"] < none["MB gradients"]
        assert none["inversion ms"] < one["inversion ms"]
    assert processes.fractions(2) == [0.0, 1.0]
    assert processes.fractions(4) == [0.0, 0.5, 1.0]
