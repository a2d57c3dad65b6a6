"""Training: the same start for all, the right optimizers, evaluations in between."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
import torch
from torch import nn

from experiments.images import Images, Split
from experiments.training import (
    KINDS,
    Point,
    Recipe,
    Setting,
    Training,
    evaluate,
    first_at,
    shuffled,
    small_cnn,
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
    return Setting(data, 30, 16, partial(small_cnn, 16, 4), 12, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_each_optimizer_learns(setting: Setting, kind: str) -> None:
    options = {} if kind in LEARNING_RATES else {"damping": 0.01}
    recipe = Recipe(kind, LEARNING_RATES.get(kind, 0.03), options)
    training = Training(recipe, setting, 0)
    points = list(training)
    assert points == training.points
    assert [point.step for point in points] == [0, 12, 24, 30]
    seconds = [point.seconds for point in points]
    assert seconds[0] == 0 and seconds == sorted(seconds) and seconds[-1] > 0
    assert points[-1].loss < 0.9 * points[0].loss
    loss, _ = evaluate(training.model, setting.data.train)
    _, accuracy = evaluate(training.model, setting.data.test)
    assert points[-1][2:] == pytest.approx((loss, accuracy))
    assert training.model.training


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
    recipe = Recipe("SGD", 0.05)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (list(Training(recipe, setting, s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    losses = [[point.loss for point in points] for points in (first, second, other)]
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[2][0]
    assert next(iter(Training(Recipe("AdamW", 1.0), setting, 1))).loss == losses[0][0]


def test_the_learning_rate_rises_and_ends_at_zero(setting: Setting) -> None:
    training = Training(Recipe("SGD", 0.1), setting, 0)
    rates = []
    for point in training:
        (group,) = training._optimizer.param_groups
        rates.append((point.step, group["lr"]))
    # a tenth of 30 steps warms up
    assert rates[0] == (0, pytest.approx(0.1 / 3))
    for step, rate in rates[1:]:
        assert rate == pytest.approx(0.05 * (1 + math.cos(math.pi * step / 30)))
    assert rates[-1][1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", ["SGD", "KFAC-expand"])
def test_divergence_ends_a_training(setting: Setting, kind: str) -> None:
    options = {} if kind == "SGD" else {"kl_clip": None, "damping": 1e-8}
    points = list(Training(Recipe(kind, 1e20, options), setting, 0))
    assert points[-1].loss == math.inf
    assert points[-1].step < setting.steps
    assert all(math.isfinite(point.loss) for point in points[:-1])


def test_shuffled_batches() -> None:
    batches = list(islice(shuffled(10, 4, seed=0), 4))
    assert [len(batch) for batch in batches] == [4] * 4
    for epoch in (batches[:2], batches[2:]):
        indices = torch.cat(epoch).tolist()
        assert len(set(indices)) == 8 and set(indices) <= set(range(10))
    assert not torch.equal(batches[0], batches[2])


def test_first_evaluation_that_reaches_a_loss() -> None:
    points = [Point(step, 0.0, loss, 0.0) for step, loss in enumerate((3.0, 1.0, 2.0))]
    assert first_at(points, 2.5) == points[1]
    assert first_at(points, 1.0) == points[1]
    assert first_at(points, 0.5) is None


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
    points = list(Training(Recipe("SGD", 0.02), few, 0))
    assert {point.accuracy for point in points[:-1]} <= {0.0, 1.0}
    training = Training(Recipe("SGD", 0.02), few, 0)
    *_, last = training
    assert last.accuracy == evaluate(training.model, setting.data.test)[1]


@pytest.mark.parametrize(("pixels", "width"), [(28, 8), (32, 16)])
def test_small_cnn(pixels: int, width: int) -> None:
    model = small_cnn(pixels, width)
    assert model(torch.randn(2, 1, pixels, pixels)).shape == (2, 10)
    kinds = [m for m in model if isinstance(m, nn.Conv2d)]
    settings = [(m.stride[0], m.groups, m.dilation[0]) for m in kinds]
    assert settings == [(1, 1, 1), (2, 1, 1), (1, 4, 1), (1, 1, 2)]
