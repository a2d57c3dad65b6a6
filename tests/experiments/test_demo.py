"""The demo's comparison accepts right factors and finds wrong ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments import comparison, demo, jacobian
from experiments.comparison import Comparison, compare, largest_difference, render
from experiments.demo import build_model, load_data, main
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


@pytest.mark.parametrize(("difference", "code"), [(1e-13, 0), (1e-3, 1), (math.nan, 1)])
def test_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    difference: float,
    code: int,
) -> None:
    result = Comparison(
        "layer", dict.fromkeys(comparison.TOLERANCES, difference), "stock", "plan"
    )
    monkeypatch.setattr(demo, "train_model", lambda *_, **__: None)
    monkeypatch.setattr(demo, "compare", lambda *_, **__: [result])
    assert main([]) == code
    assert ("more than rounding: layer" in capsys.readouterr().out) == bool(code)


def test_data_and_model_fit() -> None:
    (images, labels), (test_images, test_labels) = load_data()
    assert (len(images), len(test_images)) == (1437, 360)
    assert images.shape[1:] == (1, 32, 32)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert set(labels.tolist()) == set(test_labels.tolist()) == set(range(10))
    assert build_model()(images[:2]).shape == (2, 10)
