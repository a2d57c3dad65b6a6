"""Matrix product: two operands, unfolded where they have patterns."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given

from tests.compiler.candidates import assert_all_evaluate, layer, matched, target
from tests.strategies import BATCHES, convs, examples, noise_tensor
from tn_extensions import Conv, functional, quantities
from tn_extensions.compiler.primitives.matmul import matmul
from tn_extensions.network import simplify

QUANTITIES = ("conv", "weight_vjp", "input_vjp", "per_sample_grad")


@pytest.mark.parametrize("name", QUANTITIES)
@examples(40)
@given(convs(), BATCHES)
def test_products_of_two_operands(name: str, conv: Conv, batch_size: int) -> None:
    network = getattr(quantities, name)(conv, batch_size)
    assert_all_evaluate(matmul, network)
    assert_all_evaluate(matmul, simplify(network))


def test_matches_products_of_two_operands() -> None:
    assert matched(matmul) == {"conv"}
    network = quantities.per_sample_grad(layer(groups=2), 3, 4)
    assert assert_all_evaluate(matmul, network) == 2  # either operand is unfolded


def test_large_products_are_made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    network = quantities.per_sample_grad(layer(), 3, 4)
    at_once = list(matmul(network, target()))
    monkeypatch.setattr(sys.modules[matmul.__module__], "_LARGE", 1)
    candidates = [*matmul(network, target())]
    assert len(candidates) == 2 * len(at_once)
    assert {
        step.times for candidate in candidates for step in candidate.operations
    } == {1, 3}
    assert assert_all_evaluate(matmul, network) == len(candidates)
    x = noise_tensor((3, 2, 6, 6)).requires_grad_()
    g = noise_tensor((4, 3, 2, 6, 6))
    expected, *others = (
        torch.autograd.grad(candidate.value({"x": x, "g": g}).square().sum(), x)
        for candidate in candidates
    )
    for other in others:
        torch.testing.assert_close(other, expected)


def test_differentiable() -> None:
    conv = Conv.make(2, 3, 3, 5, padding=1)
    x = noise_tensor((2, 2, 5)).requires_grad_()
    g = noise_tensor((2, 3, 5))
    functional.per_sample_grad(x, g, conv).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_large_float32_products_are_differentiable() -> None:
    conv = Conv.make(64, 64, 3, (8, 8), padding=1)
    x = noise_tensor((2, 64, 8, 8), torch.float32).requires_grad_()
    g = noise_tensor((2, 64, 8, 8), torch.float32)
    candidate, _ = matmul(quantities.per_sample_grad(conv, 2), target(itemsize=4))
    assert candidate.compute is not None
    candidate.compute({"x": x, "g": g}).sum().backward()
    other = x.detach().double().requires_grad_()
    functional.per_sample_grad(other, g.double(), conv).sum().backward()
    assert x.grad is not None and other.grad is not None
    torch.testing.assert_close(x.grad.double(), other.grad, rtol=1e-4, atol=1e-4)
