"""Squared norms and diagonals are those of the per-sample gradients."""

from __future__ import annotations

from typing import Any

import pytest
from torch.testing import assert_close

from tests.layers.test_gradients import LAYERS, expected, uses
from tn_extensions import memory_budget
from tn_extensions.layers.squares import diagonal, squared_norms


@pytest.mark.parametrize("budget", [1, 2**28])
@pytest.mark.parametrize("key", ["weight", "bias"])
@pytest.mark.parametrize(("module", "shapes"), LAYERS)
def test_squares(
    module: Any, shapes: list[tuple[int, ...]], key: str, budget: int
) -> None:
    pairs, cotangents = uses(module, shapes)
    gradients = expected(module, shapes, cotangents, key)
    with memory_budget(budget):
        norms = squared_norms(pairs, key)
        squares = diagonal([pairs, pairs], key)
    assert_close(norms, gradients.flatten(1).square().sum(1))
    assert_close(squares.reshape(gradients[0].shape), 2 * gradients.square().sum(0))
