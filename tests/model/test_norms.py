"""Norms of per-sample gradients against the gradient of each datum alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.model import reference
from tests.model.networks import (
    MODELS,
    Normalised,
    Shared,
    Tied,
    Words,
    model_and_data,
)
from tests.strategies import BATCHES, examples, module_input, modules, noise_tensor
from tn_extensions import memory_budget
from tn_extensions.model import per_sample_grad_norms


def check(model: nn.Module, loss: Any, x: Tensor, y: Tensor, **options: Any) -> None:
    expected = reference.norms(model, loss, x, y)
    found = per_sample_grad_norms(model, loss, x, y, per_parameter=True, **options)
    assert_close(found, expected)
    whole = per_sample_grad_norms(model, loss, x, y, **options)
    assert_close(whole, reference.total(expected))


@examples(60)
@given(case=st.data())
def test_every_convolution(case: st.DataObject) -> None:
    module, sizes = case.draw(modules())
    x = module_input(module, sizes, case.draw(BATCHES))
    model = nn.Sequential(module, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).double()
    with torch.no_grad():
        y = noise_tensor(model(x).shape)
    check(model, nn.MSELoss(), x, y)


@pytest.mark.parametrize("budget", [1, 2**28])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_uses(make: Any, budget: int) -> None:
    model, x, y = model_and_data(make)
    with memory_budget(budget):
        check(model, nn.CrossEntropyLoss(), x, y)
        check(model, nn.CrossEntropyLoss(reduction="sum"), x, y)


@pytest.mark.parametrize("budget", [1, 2**28])
def test_embeddings_and_attention(budget: int) -> None:
    model = Words().double()
    words = torch.arange(12).reshape(3, 4) % 5
    with memory_budget(budget):
        check(model, nn.CrossEntropyLoss(), words, torch.tensor([0, 4, 2]))


LOSSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "function": (F.cross_entropy, {"reduction": "mean"}),
    "sum": (partial(F.cross_entropy, reduction="sum"), {"reduction": "sum"}),
    "each": (nn.CrossEntropyLoss(reduction="none"), {}),
    "own": (lambda f, y: -f[range(len(y)), y].sigmoid().log(), {}),
    "margin": (nn.MultiMarginLoss(), {}),
}


@pytest.mark.parametrize(("loss", "options"), LOSSES.values(), ids=LOSSES)
def test_losses(loss: Any, options: dict[str, Any]) -> None:
    model, x, y = model_and_data(Tied)

    def alone(output: Tensor, y: Tensor) -> Tensor:
        return torch.as_tensor(loss(output, y).sum())

    expected = reference.norms(model, alone, x, y)
    found = per_sample_grad_norms(model, loss, x, y, **options)
    assert_close(found, reference.total(expected))


def test_sum_to_the_gradient_of_the_loss() -> None:
    """Also where classes have weights: gradients are those of one batch."""
    model, x, y = model_and_data(Tied, 4)
    weights = noise_tensor((3,)).abs()
    loss = nn.CrossEntropyLoss(weights)
    share = weights[y] * 4 / weights[y].sum()
    expected = reference.total(reference.norms(model, loss, x, y)) * share
    assert_close(per_sample_grad_norms(model, loss, x, y), expected)


@pytest.mark.parametrize("num_data", [0, 1])
@pytest.mark.parametrize("make", [Shared, Tied, Normalised])
def test_few_data(make: Any, num_data: int) -> None:
    model, x, y = model_and_data(make, num_data)
    found = per_sample_grad_norms(model, nn.CrossEntropyLoss(), x, y)
    assert found.shape == (num_data,)
    if num_data:
        check(model, nn.CrossEntropyLoss(), x, y)


def test_inputs_of_several_tensors() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 3), nn.LayerNorm(4)

        def forward(self, inputs: Any) -> Tensor:
            mixed = inputs["a"] * inputs["factor"] + inputs["b"]
            return torch.as_tensor(self.layer(self.norm(mixed)))

    model, (a, b) = Both().double(), noise_tensor((2, 3, 4))
    y = torch.arange(3)
    inputs = {"a": a, "b": b, "factor": 2.0}
    found = per_sample_grad_norms(model, nn.CrossEntropyLoss(), inputs, y)
    whole = nn.Sequential(model.norm, model.layer)
    expected = reference.norms(whole, nn.CrossEntropyLoss(), a * 2 + b, y)
    assert_close(found, reference.total(expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, x, y = model_and_data(Normalised)
    loss = nn.CrossEntropyLoss()
    expected = reference.total(reference.norms(model, loss, x, y))
    loose = {"rtol": 0.05, "atol": 0.01}
    found = per_sample_grad_norms(model.to(dtype), loss, x.to(dtype), y)
    assert found.dtype == torch.float32
    assert_close(found.double(), expected, **loose)
    with torch.autocast("cpu", torch.bfloat16):
        cast = per_sample_grad_norms(model.float(), loss, x.float(), y)
    assert cast.dtype == torch.float32
    assert_close(cast.double(), expected, **loose)


def test_without_gradients_around() -> None:
    model, x, y = model_and_data(Normalised)
    loss = nn.CrossEntropyLoss()
    with torch.no_grad():
        found = per_sample_grad_norms(model, loss, x, y)
    assert_close(found, per_sample_grad_norms(model, loss, x, y))
    assert not found.requires_grad


def test_compiled_models() -> None:
    """As a whole or in part, they run without compilation, and stay compiled."""
    model, x, y = model_and_data(Normalised)
    expected = reference.norms(model, nn.CrossEntropyLoss(), x, y)
    compiled: Any = torch.compile(model, backend="eager")
    options: dict[str, Any] = {"per_parameter": True}
    found = per_sample_grad_norms(compiled, nn.CrossEntropyLoss(), x, y, **options)
    assert_close(found, expected)
    model[0].compile(backend="eager")
    model[4].compile(backend="eager")
    model(x)
    check(model, nn.CrossEntropyLoss(), x, y)
    assert model[0]._compiled_call_impl is not None


# -- what is refused


def refused(kind: type[Exception], argument: str, *args: Any, **options: Any) -> str:
    with pytest.raises(kind) as error:
        per_sample_grad_norms(*args, **options)
    assert_in_form(error.value, "per_sample_grad_norms", argument)
    return str(error.value)


def test_bad_input() -> None:
    model, x, y = model_and_data(Tied)
    loss = nn.CrossEntropyLoss()
    refused(TypeError, "model", lambda x: x, loss, x, y)
    message = refused(ValueError, "loss", model, F.cross_entropy, x, y)
    assert "cross_entropy" in message and "reduction='mean'" in message
    refused(ValueError, "reduction", model, loss, x, y, reduction="none")
    refused(TypeError, "loss", model, lambda f, y: 1.0, x, y)
    refused(TypeError, "params", model, loss, x, y, params="gain")
    refused(TypeError, "params", model, loss, x, y, params=model.gain)
    refused(ValueError, "params[1]", model, loss, x, y, params=["gain", "nope"])
    refused(ValueError, "params[0]", model, loss, x, y, params=[torch.ones(2)])
    refused(ValueError, "params", model, loss, x, y, params=[])
    refused(ValueError, "x", model, loss, {"a": x, "b": x[:1]}, y)
    lazy = nn.Sequential(nn.LazyLinear(3))
    refused(ValueError, "0.weight", lazy, loss, x, y)
    odd = nn.Sequential(nn.Linear(4, 3, dtype=torch.cfloat))
    refused(NotImplementedError, "0.weight", odd, loss, x, y)
    frozen = nn.Linear(4, 3).requires_grad_(False)
    refused(ValueError, "model", frozen, loss, x, y)

    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    refused(TypeError, "the model's output", Pair(4, 3).double(), loss, x, y)
