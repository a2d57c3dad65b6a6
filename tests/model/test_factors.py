"""KFAC's factors against patches and GGN blocks from Jacobians of torch's modules."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.model import reference
from tests.model.networks import (
    Checkpointed,
    Frames,
    Functional,
    Normalised,
    Shared,
    Tied,
    Words,
    model_and_data,
)
from tests.reference import curvature
from tests.strategies import BATCHES, examples, module_input, modules, noise_tensor
from tn_extensions import memory_budget
from tn_extensions.model import KroneckerFactors, kfac_factors

APPROX = ("expand", "reduce")
EXACT: dict[str, Any] = {"fisher_type": "type-2"}


def expected_factors(
    first: nn.Module, tail: Any, x: Tensor, loss: Any, y: Tensor, approx: str
) -> KroneckerFactors:
    """Factors of the first layer of a model."""
    with torch.no_grad():
        h = first(x)
        H = curvature.loss_hessian(lambda f: loss(f, y), tail(h))
        block = curvature.ggn_blocks(tail, h, H).sum(0)
    A = curvature.input_factor(first, x, approx)
    return KroneckerFactors(A, curvature.output_factor(first, block, approx))


@examples(40)
@given(case=st.data())
def test_every_convolution(case: st.DataObject) -> None:
    module, sizes = case.draw(modules())
    x = module_input(module, sizes, case.draw(BATCHES))
    tail = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).double()
    with torch.no_grad():
        y = noise_tensor(tail(module(x)).shape)
    model, loss = nn.Sequential(module, *tail), nn.MSELoss()
    for approx in APPROX:
        found = kfac_factors(model, loss, (x, y), approx=approx, **EXACT)
        assert found.keys() == {"0", "3"}
        expected = expected_factors(module, tail, x, loss, y, approx)
        assert_close(found["0"], expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "kind", [nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss]
)
def test_single_positions_are_exact(kind: Any, reduction: str) -> None:
    """For one datum, the product is the block; for more, the sum of these is."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    loss = kind(reduction=reduction)
    x = noise_tensor((1, 4)).expand(3, -1)
    y = noise_tensor((3, 3)).sigmoid()
    if kind is nn.CrossEntropyLoss:
        y = torch.arange(3)
    # inputs are the same, so that the product is exact
    data = [(x[:1], y[:1]), (x[1:], y[1:])]
    expected = reference.ggn_diagonal(model, loss, data)
    found = kfac_factors(model, loss, iter(data), bias=True, **EXACT)
    for name in ("0", "2"):
        (A,), (B,) = found[name]  # type: ignore[misc]
        blocks = torch.kron(B.diagonal(), A.diagonal()).unflatten(0, (3, -1))
        assert_close(blocks[:, :-1], expected[f"{name}.weight"])
        assert_close(blocks[:, -1], expected[f"{name}.bias"])


@pytest.mark.parametrize("approx", APPROX)
def test_biases_patches_and_batches(approx: str) -> None:
    """Patches end with a one; batches of any size are put together."""
    first = nn.Conv2d(2, 4, 3, stride=2, groups=2).double()
    tail = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    x, y = noise_tensor((5, 2, 7, 6)), torch.arange(5) % 3
    tail(first(x))
    model, loss = nn.Sequential(first, *tail), nn.CrossEntropyLoss()
    data = [(x[:0], y[:0]), (x[:2], y[:2]), (x[2:], y[2:])]
    options: dict[str, Any] = {"approx": approx, **EXACT}
    for budget in (1, 2**28):
        with memory_budget(budget):
            found = kfac_factors(model, loss, data, bias=True, **options)["0"]
        expected = expected_factors(first, tail, x, loss, y, approx)
        assert_close(found.B, expected.B)
        assert found.A is not None and expected.A is not None
        assert_close(found.A[:, :-1, :-1], expected.A)
        assert_close(found.A[:, -1, -1], torch.ones(2).double())
        means = nn.functional.unfold(x, 3, stride=2).mean((0, 2)).reshape(2, -1)
        assert_close(found.A[:, -1, :-1], means)
        assert_close(found.A, found.A.mT)
    first.bias.requires_grad_(False)
    without = kfac_factors(model, loss, data, bias=True, **options)["0"]
    assert_close(without, expected)
    first.weight.requires_grad_(False)
    first.bias.requires_grad_(True)
    alone = kfac_factors(model, loss, data, **options)["0"]
    assert alone.A is None
    assert_close(alone.B, expected.B)


@pytest.mark.parametrize("approx", APPROX)
def test_uses_are_positions(approx: str) -> None:
    """Frames in any order, and layers used twice, have those of the same positions."""

    class Volume(nn.Module):
        def __init__(self, model: Frames) -> None:
            super().__init__()
            self.conv = nn.Conv3d(3, 2, (1, 3, 3), stride=(1, 2, 2))
            self.linear = model.linear
            self.conv.weight.data = model.conv.weight.data.unsqueeze(2)
            self.conv.bias = model.conv.bias

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x.transpose(1, 2)).tanh().mean((3, 4)).mT
            weights = torch.arange(1.0, x.shape[1] + 1).unsqueeze(1)
            return (self.linear(h) * weights).sum(1)

    class Apart(nn.Module):
        def __init__(self, model: Frames) -> None:
            super().__init__()
            self.conv, self.linear = model.conv, model.linear

        def forward(self, x: Tensor) -> Tensor:
            rows = [self.linear(self.conv(f).tanh().mean((2, 3))) for f in x.unbind(1)]
            return torch.as_tensor(rows[0] + 2 * rows[1])

    loss, options = nn.CrossEntropyLoss(), {"approx": approx, **EXACT}
    for order in ("adjacent", "cat"):
        model, x, y = model_and_data(partial(Frames, order))
        found = kfac_factors(model, loss, (x, y), **options)
        for other in (Volume(model), Apart(model)):
            assert_close(kfac_factors(other, loss, (x, y), **options), found)


def test_fisher_types() -> None:
    first, tail = nn.Linear(4, 3).double(), nn.Sequential(nn.Tanh(), nn.Linear(3, 3))
    model = nn.Sequential(first, *tail).double()
    x, y = noise_tensor((4, 4)), torch.arange(4) % 3
    loss = nn.CrossEntropyLoss()
    exact = kfac_factors(model, loss, (x, y), **EXACT)["0"]
    # 30 samples of 100 copies of the data are as many as 3000 of each
    many: dict[str, Any] = {"fisher_type": "mc", "mc_samples": 30}
    copies = x.repeat(100, 1), y.repeat(100)
    drawn = kfac_factors(model, loss, copies, **many)["0"]
    assert_close(drawn.A, exact.A)
    assert_close(drawn.B, exact.B, rtol=0.2, atol=0.02 * float(exact.B.max()))
    once = [kfac_factors(model, loss, (x, y), seed=seed)["0"].B for seed in (1, 1, 2)]
    assert torch.equal(once[0], once[1]) and not torch.equal(once[0], once[2])
    gradients = reference.gradients(model, loss, x, y)["0.bias"]
    for reduction, scale in (("mean", 1 / 4), ("sum", 1)):
        loss = nn.CrossEntropyLoss(reduction=reduction)
        found = kfac_factors(model, loss, (x, y), fisher_type="empirical")["0"]
        assert_close(found.B[0], gradients.T @ gradients * scale)
    forward = kfac_factors(model, loss, (x, y), fisher_type="forward-only")["0"]
    assert_close(forward, KroneckerFactors(exact.A, torch.eye(3)[None].double()))


def test_which_layers_have_factors() -> None:
    loss = nn.CrossEntropyLoss()
    model, x, y = model_and_data(Normalised)
    found = kfac_factors(model, loss, (x, y))
    assert found.keys() == {"0", "3", "7"}
    # of a kernel that is computed, the bias alone
    assert found["3"].A is None and found["0"].A is not None
    options = {"params": ["7.weight"]}
    assert kfac_factors(model, loss, (x, y), **options).keys() == {"7"}
    model, x, y = model_and_data(Functional)
    # the kernel is used elsewhere, too
    found = kfac_factors(model, loss, (x, y))
    assert found.keys() == {"shift", "other"}
    assert found["shift"].A is None and found["other"].A is not None
    words = torch.arange(12).reshape(3, 4) % 5
    found = kfac_factors(Words().double(), loss, (words, y))
    assert found.keys() == {"last"}
    assert found["last"].A is None
    assert kfac_factors(nn.Linear(4, 3).double(), loss, (noise_tensor((3, 4)), y))[""]


@pytest.mark.parametrize("make", [Shared, Checkpointed])
def test_half_precision_and_few_data(make: Any) -> None:
    model, x, y = model_and_data(make)
    loss = nn.CrossEntropyLoss()
    expected = kfac_factors(model, loss, (x, y), **EXACT)
    empty = kfac_factors(model, loss, (x[:0], y[:0]), **EXACT)
    assert not any(own.A.any() or own.B.any() for own in empty.values())  # type: ignore[union-attr]
    assert [a.shape for a in empty["last"]] == [a.shape for a in expected["last"]]  # type: ignore[union-attr]
    half = x.bfloat16()
    found = [kfac_factors(model.bfloat16(), loss, (half, y), **EXACT)]
    with torch.autocast("cpu", torch.bfloat16):
        found.append(kfac_factors(model.float(), loss, (x.float(), y), **EXACT))
    for name, own in expected.items():
        for each in found:
            for got, exact in zip(each[name], own, strict=True):
                assert got is not None and got.dtype == torch.float32
                bound = 0.05 * float(exact.max())  # type: ignore[union-attr]
                assert_close(got.double(), exact, rtol=0.1, atol=bound)


def test_bad_input() -> None:
    model, x, y = model_and_data(Tied)
    loss, data = nn.CrossEntropyLoss(), (x, y)

    def refused(kind: Any, argument: str, *args: Any, **options: Any) -> str:
        with pytest.raises(kind) as error:
            kfac_factors(*args, **options)
        assert_in_form(error.value, "kfac_factors", argument)
        return str(error.value)

    argument = "parameters gain"
    message = refused(NotImplementedError, argument, model, loss, data, params=["gain"])
    assert "params" in message
    refused(ValueError, "approx", model, loss, data, approx="both")
    refused(ValueError, "fisher_type", model, loss, data, fisher_type="exact")
    refused(ValueError, "mc_samples", model, loss, data, mc_samples=0)
    refused(NotImplementedError, "loss", model, nn.L1Loss(), data)
    message = refused(ValueError, "kernel 'first.weight'", model, loss, data, bias=True)
    assert "first.bias" in message and "bias=False" in message
    refused(ValueError, "the model's output", model, loss, (x * torch.inf, y))
    norm = nn.Sequential(nn.LayerNorm(4)).double()
    refused(NotImplementedError, "parameters 0.weight, 0.bias", norm, loss, data)
    refused(ValueError, "layer '1'", model_and_data(Normalised)[0].train(), loss, data)
    frames, x, y = model_and_data(partial(Frames, "neither"))
    argument = "rows of the input of layer 'linear.weight'"
    refused(ValueError, argument, frames, loss, (x, y), approx="reduce")
    # for which the order does not matter
    assert kfac_factors(frames, loss, (x, y), approx="expand")


def test_layer_without_influence_on_the_loss() -> None:
    class Probed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.probe = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.probe(x)
            out: Tensor = self.first(x)
            return out

    x, y = noise_tensor((5, 4)), torch.arange(5) % 3
    found = kfac_factors(Probed().double(), nn.CrossEntropyLoss(), (x, y))
    assert_close(found["probe"].A, found["first"].A)
    assert_close(found["probe"].B, torch.zeros(1, 2, 2, dtype=torch.float64))


def test_factors_that_overflow() -> None:
    """The output is finite, but the squares of the input are not."""
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    data = torch.full((2, 4), 1e30), torch.arange(2)
    with pytest.raises(ValueError) as caught:
        kfac_factors(nn.Sequential(model), nn.CrossEntropyLoss(), data)
    assert_in_form(caught.value, "kfac_factors", "inputs of layer '0'")
