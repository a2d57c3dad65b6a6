"""Constants of plans: made when first used, once per dtype and device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.compiler.candidates import layer
from tests.reference import dense
from tests.strategies import noise_tensor
from tn_extensions import Conv, functional, quantities
from tn_extensions.compiler import plan
from tn_extensions.compiler.constant import Constant


def test_constant_is_made_late_and_kept() -> None:
    calls = []

    def make() -> np.ndarray:
        calls.append(None)
        return np.eye(3)

    constant = Constant(make)
    assert not calls
    single = constant.like(torch.zeros(1))
    assert single.dtype == torch.float32 and constant.like(torch.ones(2)) is single
    assert constant.like(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert len(calls) == 2
    assert torch.equal(single, torch.eye(3))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, FakeTensorMode])
def test_constant_of_any_mode_is_differentiated_through(mode: Any) -> None:
    constant = Constant(lambda: np.eye(3))
    with mode():
        constant.like(torch.zeros(1))
    x = torch.ones(3, 3, requires_grad=True)
    (x @ constant.like(x)).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones(3, 3))


def test_constant_of_a_function_transform_is_used_outside_of_it() -> None:
    constant = Constant(lambda: np.eye(3))

    def product(x: torch.Tensor) -> torch.Tensor:
        return (x @ constant.like(x)).sum()

    one = torch.ones(3, 3)
    assert torch.equal(torch.func.vmap(torch.func.grad(product))(one[None])[0], one)
    x = one.clone().requires_grad_()
    product(x).backward()
    assert x.grad is not None and torch.equal(x.grad, one)


@pytest.mark.parametrize("quantity", ["kfac_expand", "kfac_reduce", "unfold_weight"])
def test_plans_first_run_in_inference_mode_are_differentiable(quantity: str) -> None:
    # of sizes that no other test plans
    network = getattr(quantities, quantity)(layer(input_size=(7, 5)), 3)
    chosen = plan(network, torch.float64)
    ways = [
        way for way in (chosen.candidate, *chosen.rejected) if way.is_differentiable
    ]
    assert ways
    (operand,) = {operand.name: operand for operand in network.operands}.values()
    x = noise_tensor(operand.shape)
    for way in ways:
        assert way.compute is not None
        with torch.inference_mode():
            way.compute({operand.name: x})
        leaf = x.clone().requires_grad_()
        way.compute({operand.name: leaf}).sum().backward()
        assert leaf.grad is not None


def test_functions_after_inference_mode() -> None:
    conv = Conv.make(2, 2, 3, (5, 8), padding=1, stride=2)
    x = noise_tensor((3, 2, 5, 8))
    with torch.inference_mode():
        functional.kfac_reduce(x, conv)
    leaf = x.clone().requires_grad_()
    factor = functional.kfac_reduce(leaf, conv)
    expected = torch.from_numpy(dense.factor(conv, x.numpy(), "reduce"))
    torch.testing.assert_close(factor.detach(), expected)
    factor.sum().backward()
    assert leaf.grad is not None
