"""Training: the same start for all, the right optimizers, evaluations in between."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from experiments.harness.case import Options, Row
from experiments.questions.training import QUESTION, ends, grid, summary, tables
from experiments.subjects import images as images_module
from experiments.subjects.images import Images, Split
from experiments.subjects.training import (
    KINDS,
    Recipe,
    Setting,
    evaluate,
    shuffled,
    small_cnn,
    train,
    tuned,
)
from tn_extensions.optim import KFAC

LEARNING_RATES = {"SGD": 0.02, "AdamW": 0.003}


@pytest.fixture
def setting() -> Setting:
    """Images whose label is where they are bright."""
    labels = torch.arange(48) % 4
    images = 0.1 * torch.randn(48, 1, 16, 16)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * label : 4 * label + 4] += 1
    data = Images(
        "stripes", Split(images[:32], labels[:32]), Split(images[32:], labels[32:])
    )
    return Setting(data, 30, partial(small_cnn, 16, 4), 12, 32, 16)


def points_of(
    kind: str, lr: float, setting: Setting, seed: int, options: Any = None
) -> list[Row]:
    recipe = Recipe(kind, lr, options or {})
    return list(train(setting.model(seed), recipe, setting, seed))


@pytest.mark.parametrize("kind", KINDS)
def test_each_optimizer_learns(setting: Setting, kind: str) -> None:
    options = {} if kind in LEARNING_RATES else {"damping": 0.01}
    recipe = Recipe(kind, LEARNING_RATES.get(kind, 0.03), options)
    model = setting.model(0)
    points = list(train(model, recipe, setting, 0))
    assert [point["step"] for point in points] == [0, 12, 24, 30]
    seconds = [point["seconds"] for point in points]
    assert seconds[0] == 0 and seconds == sorted(seconds) and seconds[-1] > 0
    assert points[-1]["loss"] < 0.9 * points[0]["loss"]
    loss, _ = evaluate(model, setting.data.train)
    _, accuracy = evaluate(model, setting.data.test)
    assert points[-1]["loss"] == pytest.approx(loss)
    assert points[-1]["accuracy"] == accuracy
    assert model.training


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("KFAC-expand", ("expand", False)),
        ("KFAC-reduce", ("reduce", False)),
        ("EKFAC", ("expand", True)),
    ],
)
def test_kinds_of_kfac(kind: str, expected: tuple[str, bool]) -> None:
    optimizer = Recipe(kind, 0.1, {"damping": 0.5}).build(small_cnn(8, 4))
    assert isinstance(optimizer, KFAC)
    for layer in optimizer.preconditioner._layers.values():
        options = layer.options
        assert (options.approx, options.eigenvalue_correction) == expected
        assert options.damping == 0.5
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"]) == (0.1, 0.9)


def test_seeds_fix_weights_and_batches(setting: Setting) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (points_of("SGD", 0.05, setting, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    losses = [[point["loss"] for point in points] for points in (first, second, other)]
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[2][0]
    begin, *_ = points_of("AdamW", 1.0, setting, 1)
    assert begin["loss"] == losses[0][0]


def test_the_learning_rate_rises_and_ends_at_zero(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recipe, rates = setting.model(0), Recipe("SGD", 0.1), []
    optimizer = recipe.build(model)
    monkeypatch.setattr(Recipe, "build", lambda *_: optimizer)
    for point in train(model, recipe, setting, 0):
        (group,) = optimizer.param_groups
        rates.append((point["step"], group["lr"]))
    # a tenth of 30 steps warms up
    assert rates[0] == (0, pytest.approx(0.1 / 3))
    for step, rate in rates[1:]:
        assert rate == pytest.approx(0.05 * (1 + math.cos(math.pi * step / 30)))
    assert rates[-1][1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", ["SGD", "KFAC-expand"])
def test_divergence_ends_a_training(setting: Setting, kind: str) -> None:
    options = {} if kind == "SGD" else {"kl_clip": None, "damping": 1e-8}
    points = points_of(kind, 1e20, setting, 0, options)
    assert points[-1]["loss"] == math.inf
    assert points[-1]["step"] < setting.steps
    assert all(math.isfinite(point["loss"]) for point in points[:-1])


def test_shuffled_batches() -> None:
    batches = list(islice(shuffled(10, 4, seed=0), 4))
    assert [len(batch) for batch in batches] == [4] * 4
    for epoch in (batches[:2], batches[2:]):
        indices = torch.cat(epoch).tolist()
        assert len(set(indices)) == 8 and set(indices) <= set(range(10))
    assert not torch.equal(batches[0], batches[2])


def test_evaluation_is_a_mean_over_all(setting: Setting) -> None:
    model = setting.make_model()
    images, labels = setting.data.train
    many = Split(images.repeat(20, 1, 1, 1), labels.repeat(20))
    loss, accuracy = evaluate(model, many)
    outputs = model(images)
    assert loss == pytest.approx(nn.CrossEntropyLoss()(outputs, labels).item())
    hits = (outputs.argmax(1) == labels).double().mean()
    assert accuracy == pytest.approx(float(hits))


def test_all_test_images_count_at_the_end_only(setting: Setting) -> None:
    few = replace(setting, num_evaluated=1)
    model = few.model(0)
    *points, last = train(model, Recipe("SGD", 0.02), few, 0)
    assert {point["accuracy"] for point in points} <= {0.0, 1.0}
    assert last["accuracy"] == evaluate(model, setting.data.test)[1]


@pytest.mark.parametrize(("pixels", "width"), [(28, 8), (32, 16)])
def test_small_cnn(pixels: int, width: int) -> None:
    model = small_cnn(pixels, width)
    assert model(torch.randn(2, 1, pixels, pixels)).shape == (2, 10)
    kinds = [m for m in model if isinstance(m, nn.Conv2d)]
    settings = [(m.stride[0], m.groups, m.dilation[0]) for m in kinds]
    assert settings == [(1, 1, 1), (2, 1, 1), (1, 4, 1), (1, 1, 2)]


# -- the question


def test_the_best_recipe_runs_from_other_seeds(setting: Setting) -> None:
    grids = [[Recipe("SGD", 1e-6), Recipe("SGD", 0.02)], [Recipe("AdamW", 0.003)]]
    rows = pd.DataFrame(tuned(setting, grids, (0, 1), (2,)))
    trials, runs = (rows[rows["phase"] == phase] for phase in ("trial", "run"))
    assert trials.groupby("options").size().to_dict() == {
        "lr 1e-06": 2,
        "lr 0.02": 2,
        "lr 0.003": 2,
    }
    assert set(trials["seed"]) == {0, 1} and set(runs["seed"]) == {2}
    assert set(runs["options"]) == {"lr 0.02", "lr 0.003"}
    # in turns: first all beginnings
    assert runs["step"].tolist() == [0, 0, 12, 12, 24, 24, 30, 30]


def run_of(contender: str, seed: int, losses: list[float]) -> list[dict[str, object]]:
    return [
        {
            "data": "a",
            "phase": "run",
            "contender": contender,
            "options": "",
            "seed": seed,
            "step": 10 * number,
            "seconds": number * (2.0 if contender == "AdamW" else 1.0),
            "loss": loss,
            "accuracy": 0.1 * number,
        }
        for number, loss in enumerate(losses)
    ]


def test_ratios_are_what_rows_say() -> None:
    rows = pd.DataFrame(
        [
            *run_of("SGD", 1, [3.0, 2.0, 1.0]),
            *run_of("SGD", 2, [3.0, 0.5, 1.0]),
            *run_of("AdamW", 1, [3.0, 0.9, 0.1]),
            *run_of("AdamW", 2, [3.0, 2.0, 1.5]),
        ]
    )
    found = ends(rows)
    adam, sgd = found.loc[("a", "AdamW", 1)], found.loc[("a", "SGD", 2)]
    assert (adam["loss"], adam["accuracy"], adam["ms a step"]) == (0.1, 0.2, 200)
    assert (adam["steps to it"], adam["x of SGD's steps"]) == (10, 0.5)
    assert (adam["seconds to it"], adam["x of SGD's seconds"]) == (2, 1)
    assert (sgd["steps to it"], sgd["x of SGD's steps"]) == (10, 1)
    means = summary(rows)
    assert means["loss"]["a", "AdamW"] == pytest.approx(0.8)
    # one seed missed the goal
    assert math.isnan(means["x of SGD's steps"]["a", "AdamW"])
    assert means["x of SGD's steps"]["a", "SGD"] == 1


def test_the_question_is_answered(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "digits", lambda: setting.data)
    (case,) = QUESTION.cases(Options(quick=True))
    rows = pd.DataFrame(
        {**case.key, **row} for row in case.measure(Options(quick=True))
    )
    assert set(rows["contender"]) == set(KINDS)
    assert len(QUESTION.figures(rows)) == 1
    assert len(tables(rows)["Optimizers"]) == len(KINDS)
    assert {len(grid(kind)) for kind in KINDS} == {8}


def test_missing_images_are_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "DEBIAN_FASHION", tmp_path / "none")
    case = next(iter(QUESTION.cases(Options())))
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        list(case.measure(Options()))
