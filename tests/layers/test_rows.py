"""Which datum rows belong to, as gradients tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tn_extensions.layers.rows import is_cat, probes


def gradients(h: Tensor, output: Tensor, num_data: int) -> list[Tensor]:
    return [
        torch.autograd.grad(output, h, vector, retain_graph=True)[0]
        for vector in probes(output.detach(), num_data)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_data", [2, 3, 16, 40])
@pytest.mark.parametrize("each", [2, 9])
def test_orders(num_data: int, each: int, dtype: torch.dtype) -> None:
    """Only one row of each datum has a gradient, as in causal models."""
    layer = nn.Linear(3, 4, dtype=dtype)
    h = torch.rand(num_data * each, 3, dtype=dtype, requires_grad=True)
    adjacent = layer(h.tanh().unflatten(0, (num_data, each))[:, -1])
    assert is_cat(*gradients(h, adjacent, num_data), num_data) is False
    apart = layer(h.tanh().unflatten(0, (each, num_data))[-1])
    assert is_cat(*gradients(h, apart, num_data), num_data) is True
    other = layer(h.tanh().roll(1, 0).unflatten(0, (num_data, each)).sum(1))
    assert is_cat(*gradients(h, other, num_data), num_data) is None
    mixed = adjacent + (5 if dtype == torch.bfloat16 else 0.1) * adjacent.mean(0)
    assert is_cat(*gradients(h, mixed, num_data), num_data) is None


def test_zero_and_infinite_gradients() -> None:
    zero = torch.zeros(6, 2)
    assert is_cat(zero, zero, 3) is False
    infinite = zero / 0
    assert is_cat(infinite, infinite, 3) is False
