"""Layers that compute their kernels, and subclasses that do not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.backpack.run import classifier, images
from tests.backpack.suite import FIRST_ORDER, names_with
from tests.backpack.test_extension import (
    EVERY,
    SECOND_ORDER,
    assert_refused,
    backward,
)
from tests.backpack.test_firstorder import COMPUTED, chain
from tn_extensions import backpack as ours


@pytest.mark.parametrize("case", list(COMPUTED))
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_computed_kernels(name: str, case: str) -> None:
    x = images(2, 1, 5)
    model = classifier(nn.Conv1d(1, 2, 2), nn.ReLU(), *chain(COMPUTED[case]()), x=x)
    message = assert_refused(NotImplementedError, name, model, x)
    assert "must multiply by its parameters" in message


@pytest.mark.parametrize("name", ["BatchGrad", "DiagGGNExact", "KFLR"])
def test_subclasses_that_compute_the_same(name: str) -> None:
    class Layer(nn.Linear):
        """Not more than a name."""

    x = images(2, 4)
    model = classifier(nn.Linear(4, 4), nn.ReLU(), x=x)
    twin = copy.deepcopy(model)
    twin[0].__class__ = Layer
    extension = EVERY[name](ours)
    wanted = names_with(backward(model, extension, x=x), extension.savefield)
    found = names_with(backward(twin, extension, x=x), extension.savefield)
    assert_close(found, wanted)


class Magnitude(nn.Module):
    """From complex numbers to real ones."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


@pytest.mark.parametrize("name", list(FIRST_ORDER))
@pytest.mark.parametrize("layer", [nn.Conv1d(2, 3, 2), nn.Linear(5, 2)], ids=str)
def test_complex_layers(name: str, layer: nn.Module) -> None:
    layer = copy.deepcopy(layer).to(torch.complex128)
    x = images(2, 2, 5).to(torch.complex128)
    head = nn.Sequential(Magnitude(), nn.Flatten(), nn.LazyLinear(3).double())
    model = nn.Sequential(layer, *head)
    model(x)
    message = assert_refused(TypeError, name, model, x)
    kind = type(layer).__name__
    assert f"{kind}.output must be real" in message and f"{kind}(" in message
