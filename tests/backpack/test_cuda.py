"""Extensions on a CUDA device that is not there: nothing on the host, no waiting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from backpack import backpack, extend
from backpack.core.derivatives.basederivatives import BaseLossDerivatives
from torch import Tensor, nn
from torch.distributions import Distribution

from tests.fake_cuda import CUDA, FakeCuda
from tn_extensions import backpack as ours

pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:The Kronecker factors stored in the weight"),
]


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Skip the checks of values that BackPACK and torch make of their own."""
    name = "_check_loss_has_not_been_modified"
    monkeypatch.setattr(BaseLossDerivatives, name, lambda *_: None)
    # of distributions, from which BackPACK draws
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    yield
    Distribution.set_default_validate_args(before)


def network() -> nn.Sequential:
    with torch.device(CUDA):
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, stride=2, groups=2),
            nn.Sigmoid(),
            nn.ConvTranspose2d(4, 2, 2),
            nn.Flatten(),
            nn.Linear(8, 3),
        ).eval()


@pytest.mark.parametrize("name", ours.__all__)
def test_extensions(name: str, cuda: FakeCuda) -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    x, y = cuda.tensor(4, 2, 8, 8), cuda.tensor(4, dtype=torch.long)
    extend(model), extend(loss)
    extension = getattr(ours, name)()
    parameters = list(model.parameters())

    def run() -> list[list[Tensor]]:
        with backpack(extension):
            loss(model(x), y).backward()
        return [getattr(p, extension.savefield) for p in parameters]

    cuda.run(run)
