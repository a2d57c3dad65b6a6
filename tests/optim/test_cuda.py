"""Steps on a CUDA device that is not there: nothing on the host, no waiting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.fake_cuda import CUDA, FakeCuda
from tests.optim.support import decomposed_in_place
from tn_extensions.optim import KFAC, KFACPreconditioner


def network() -> nn.Sequential:
    """Make a network with padding that is not zero, groups, and a transposed layer."""
    with torch.device(CUDA):
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 2, 2),
            nn.Flatten(),
            nn.Linear(32, 3),
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"approx": "reduce", "damping_method": "fixed", "kl_clip": None},
        {"damping_method": "exact", "keep": {"n": 0.5}},
        {"eigenvalue_correction": True, "fisher": "mc"},
        {"fisher": "type-2", "factor_update_steps": 2},
    ],
    ids=str,
)
def test_steps(options: dict[str, Any], cuda: FakeCuda) -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    x, y = cuda.tensor(4, 2, 8, 8), cuda.tensor(4, dtype=torch.long)
    preconditioner = KFACPreconditioner(model, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        preconditioner.step()
        optimizer.step()

    with decomposed_in_place():
        step()
        cuda.run(step)
    layers = preconditioner._layers.values()
    assert len(layers) == 4 and all(layer.inverse is not None for layer in layers)


def test_optimizer(cuda: FakeCuda) -> None:
    model, loss = network(), nn.MSELoss()
    x, y = cuda.tensor(4, 2, 8, 8), cuda.tensor(4, 3)
    optimizer = KFAC(model, lr=0.1, loss_func=loss)

    def step() -> None:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    cuda.run(step)
