"""Gradients of single data, by transforms of torch.func or one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.model.networks import (
    Tied,
    model_and_data,
)
from tests.model.test_norms import check, refused
from tests.strategies import noise_tensor
from tn_extensions import memory_budget
from tn_extensions.model import per_sample_grad_norms


def test_functions_without_a_batching_rule() -> None:
    """Data are then run one after the other."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.last = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            rows = [row * self.gain if row.sum() > 0 else row - self.gain for row in x]
            return torch.as_tensor(self.last(torch.stack(rows)))

    model, x = Branches().double(), noise_tensor((6, 4))
    for budget in (1, 2**20):
        with memory_budget(budget):
            check(model, nn.CrossEntropyLoss(), x, torch.arange(6) % 3)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_attributes_are_left_as_they_are() -> None:
    """Of a transform, there are no tensors in the model that can be used no more."""
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3))).double()
    x, y = noise_tensor((3, 4)), torch.arange(3)
    check(model, nn.CrossEntropyLoss(), x, y)
    assert model[0].weight.sum().isfinite()


def test_parameters_without_use_and_models_that_draw() -> None:
    model, x, y = model_and_data(Tied)
    loss = nn.CrossEntropyLoss()
    model.unused = nn.Linear(2, 2)
    message = refused(ValueError, "parameter 'unused.weight'", model, loss, x, y)
    assert "params" in message
    drawing = nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.LayerNorm(3)).double()
    argument = "parameters 2.weight, 2.bias"
    assert "model.eval()" in refused(NotImplementedError, argument, drawing, loss, x, y)
    # only the other layers need to be run again
    params = [*drawing[0].parameters()]
    found = per_sample_grad_norms(drawing, loss, x, y, params=params)
    assert found.isfinite().all()
