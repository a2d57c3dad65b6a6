"""Moments of layers that are used several times on the same data."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.strategies import noise_tensor
from tn_extensions import Conv, memory_budget
from tn_extensions.kronecker.moments import bias_moments, kernel_moments
from tn_extensions.layers.gradients import per_sample_gradients
from tn_extensions.layers.module import Use

DATA, GROUPS = 3, 2


def pairs_of(sizes: list[int], dtype: torch.dtype = torch.float64) -> list:
    """Make uses on inputs of these sizes, and the gradients of their outputs."""
    found = []
    for size in sizes:
        conv = Conv.make(4, 6, 3, size, groups=GROUPS)
        x = noise_tensor((DATA, 4, size), dtype)
        g = noise_tensor((DATA, 6, *conv.output_size), dtype)
        found.append((Use(x, conv, False, DATA), g))
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [[5], [3], [5, 4], [3, 3, 5]])
@pytest.mark.parametrize("budget", [1, 2**28])
def test_gradients_are_summed_before_they_are_squared(
    sizes: list[int], bias: bool, budget: int
) -> None:
    pairs = pairs_of(sizes)
    left, right = noise_tensor((GROUPS, 3, 2)), noise_tensor((GROUPS, 6 + bias, 5))
    # tested on its own against automatic differentiation
    gradients = per_sample_gradients(pairs, "weight").reshape(DATA, GROUPS, 3, 6)
    sums = sum(g.sum(2) for _, g in pairs).reshape(DATA, GROUPS, 3, 1)
    if bias:
        gradients = torch.cat([gradients, sums], 3)
    expected = (left.mT @ gradients @ right).square().sum(0)
    with memory_budget(budget):
        assert_close(kernel_moments(pairs, left, right, bias), expected)
    assert_close(bias_moments(pairs, left), (left.mT @ sums).square().sum(0))


def test_in_the_precision_of_the_bases() -> None:
    pairs = pairs_of([5], torch.float16)
    left, right = noise_tensor((GROUPS, 3, 3)), noise_tensor((GROUPS, 6, 6))
    exact = [(Use(use.x.double(), use.conv, False, DATA), g) for use, g in pairs]
    exact = [(use, g.double()) for use, g in exact]
    found = kernel_moments(pairs, left, right, False)
    assert_close(found, kernel_moments(exact, left, right, False))
