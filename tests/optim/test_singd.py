"""Our SINGD steps as stock's, where that is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

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
        loss_of(model, batch(size, number)).backward()
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


def test_paddings_that_stock_mistakes() -> None:
    """The same network, its padding explicit."""
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
