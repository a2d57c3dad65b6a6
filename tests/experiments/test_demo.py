"""The demo's comparison accepts right factors and finds wrong ones."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from experiments import comparison, demo, jacobian
from experiments.comparison import Comparison, compare, largest_difference, render
from experiments.demo import RECIPES, main, train_all, training_table
from experiments.images import Images, digits
from experiments.training import Point, Setting, Training, small_cnn
from tests.reference.jacobian import kfac_factor
from tn_extensions.backpack import KFAC


class _WrongKFAC(KFAC):
    """Ours with two Monte-Carlo samples instead of one."""

    def __init__(self) -> None:
        super().__init__(mc_samples=2)


@pytest.fixture
def batch() -> tuple[nn.Sequential, Tensor, Tensor]:
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


def test_right_factors_agree(batch: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    strided, grouped = compare(*batch, rounds=5)
    assert strided.agrees and grouped.agrees
    assert set(strided.differences) == {torch.float32, torch.float64}
    assert strided.remark == "stock"
    assert strided.time_ratio is not None and strided.time_ratio > 0
    assert "groups = 2 not supported" in grouped.remark
    assert grouped.time_ratio is grouped.memory_ratio is None
    table = render([strided, grouped])
    assert "0: 2-4 k3 s2" in table and "2: 4-6 k3 g2" in table


def test_wrong_factors_are_found(
    batch: tuple[nn.Sequential, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("compare_time", "compare_memory"):
        monkeypatch.setattr(comparison, name, lambda *_: 1.0)
    comparisons = compare(*batch, ours=_WrongKFAC)
    assert not any(c.agrees for c in comparisons)


def test_largest_difference() -> None:
    a, b = torch.eye(3), torch.ones(2, 2)
    assert largest_difference([a, b], [a, b]) == 0
    assert largest_difference([a, 1.5 * b], [a, b]) == pytest.approx(0.5)
    assert largest_difference([a], [a, b]) == math.inf
    assert largest_difference([b, a], [a, b]) == math.inf
    assert largest_difference([a, math.nan * b], [a, b]) == math.inf


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 6, (3, 2), stride=2, padding="valid", groups=2),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"),
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2),
    ],
)
def test_reference_is_that_of_the_tests(module: Any) -> None:
    module = module.double()
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    expected = kfac_factor(module, x, "expand")
    torch.testing.assert_close(jacobian.kfac_expand(module, x), expected)


@pytest.fixture
def setting() -> Setting:
    data = digits()
    small = Images(data.name, data.train.first(64), data.test.first(32))
    return Setting(small, 24, 32, partial(small_cnn, data.pixels, 4), 6, 64)


@pytest.mark.parametrize(("difference", "code"), [(1e-13, 0), (1e-3, 1), (math.nan, 1)])
def test_exit_code_and_plot(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    setting: Setting,
    difference: float,
    code: int,
) -> None:
    result = Comparison(
        "layer", dict.fromkeys(comparison.TOLERANCES, difference), "stock", "plan"
    )
    trainings = [Training(recipe, setting, 0) for recipe in RECIPES]
    for training in trainings:
        training.points += [Point(0, 0.0, 2.0, 0.1), Point(4, 1.0, 1.0, 0.5)]
    monkeypatch.setattr(demo, "train_all", lambda _: trainings)
    monkeypatch.setattr(demo, "compare", lambda *_, **__: [result])
    output = tmp_path / "plot.svg"
    assert main(["--output", str(output)]) == code
    printed = capsys.readouterr().out
    assert ("more than rounding: layer" in printed) == bool(code)
    assert str(output) in printed
    curves = ElementTree.parse(output).findall("{*}polyline")
    # against steps and time
    assert len(curves) == 2 * len(RECIPES)


def test_plot_is_written_outside_of_the_checkout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    (place,) = {
        Path(word.strip("()")).parent
        for word in capsys.readouterr().out.split()
        if "tn_extensions-demo.svg" in word
    }
    assert not place.is_relative_to(Path(demo.__file__).parents[1])


def test_all_optimizers_train_with_a_bar_each(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings = train_all(replace(setting, steps=48))
    kinds = [training.recipe.kind for training in trainings]
    assert kinds == ["SGD", "AdamW", "KFAC-expand", "KFAC-reduce"]
    bars = capsys.readouterr().err
    assert all(kind in bars for kind in kinds) and bars.count("48/48") >= len(kinds)
    losses = [training.points[-1].loss for training in trainings]
    # 48 steps on 64 images: KFAC is far ahead
    assert max(losses[2:]) < 0.5 * losses[0]


def test_table_tells_when_the_first_loss_was_reached(setting: Setting) -> None:
    trainings = [Training(recipe, setting, 0) for recipe in RECIPES[:3]]
    for training, losses in zip(
        trainings, [(2.0, 1.5, 1.0), (2.0, 0.9, 0.5), (2.0, 1.5, 1.2)], strict=True
    ):
        for number, loss in enumerate(losses):
            training.points.append(Point(6 * number, 0.5 * number, loss, 0.25))
    _, _, *rows = [line.split() for line in training_table(trainings).splitlines()]
    assert rows[0] == ["SGD", "1.0000", "25.0%", "12", "1.0", "83", "12", "1.0"]
    assert rows[1] == ["AdamW", "0.5000", "25.0%", "12", "1.0", "83", "6", "0.5"]
    assert rows[2][-2:] == ["not", "reached"]
