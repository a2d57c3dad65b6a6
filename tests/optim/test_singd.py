"""Our SINGD steps as stock's, where that is right."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import tn_extensions.optim
from tests.optim.support import batch, loss_of
from tests.strategies import noise_tensor

stock = pytest.importorskip("singd.optim.optimizer", reason="the extra is missing")

from tn_extensions.optim import SINGD  # noqa: E402


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, 2, bias=False, **options),
        nn.Flatten(),
        nn.LazyLinear(3),
    ).double()
    model(batch()[0])
    return model


def train(optimizer: Any, model: nn.Module, size: int, **options: Any) -> list[Tensor]:
    found = optimizer(model, lr=0.1, T=2, lr_cov=0.1, **options)
    for number in range(4):
        found.zero_grad()
        dtype = next(model.parameters()).dtype
        loss_of(model, batch(size, number, dtype)).backward()
        found.step()
    return list(model.parameters())


@pytest.mark.parametrize("structures", [("dense", "dense"), ("diagonal", "diagonal")])
@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("average", ["batch", None])
def test_equals_stock(structures: Any, approx: str, size: int, average: Any) -> None:
    options = {
        "structures": structures,
        "kfac_approx": approx,
        "loss_average": average,
    }
    expected = train(stock.SINGD, network(), size, **options)
    assert_close(train(SINGD, network(), size, **options), expected)


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("structure", sorted(stock.SINGD.SUPPORTED_STRUCTURES))
def test_every_structure_equals_stock(structure: str, approx: str) -> None:
    """Of factors wide enough to have blocks, of few and many vectors, in float32."""

    def wide() -> nn.Sequential:
        torch.manual_seed(0)
        layers = nn.Conv2d(2, 8, 2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 33)
        return nn.Sequential(*layers, nn.Tanh(), nn.Linear(33, 3))

    options = {"structures": (structure, structure), "kfac_approx": approx}
    for size in (6, 40):
        results, warned = [], []
        for optimizer in (SINGD, stock.SINGD):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                results.append(train(optimizer, wide(), size, **options))
            warned.append({str(each.message) for each in caught})
        assert_close(*results, rtol=1e-4, atol=1e-6)
        assert warned[0] <= warned[1]


def test_paddings_that_stock_mistakes() -> None:
    """It equals the network with explicit padding."""
    model = nn.Sequential(nn.Conv2d(2, 3, 2, padding="same", padding_mode="circular"))
    explicit = nn.Sequential(nn.CircularPad2d((0, 1, 0, 1)), nn.Conv2d(2, 3, 2))
    explicit[1].load_state_dict(model[0].state_dict())
    found = []
    for each in (model.double(), explicit.double()):
        optimizer = SINGD(each, lr=0.1, T=1)
        x = noise_tensor([4, 2, 3, 3])
        (each(x) * noise_tensor([4, 3, 3, 3])).sum().backward()
        optimizer.step()
        found.append(list(each.parameters()))
    assert_close(*found)


def test_singd_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tn_extensions.optim.singd")
    for name in [*sys.modules]:
        if name.split(".")[0] == "singd":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"tn-extensions\[singd\]"):
        tn_extensions.optim.SINGD  # noqa: B018
    with pytest.raises(AttributeError, match="'SINGDs'"):
        tn_extensions.optim.SINGDs  # noqa: B018
