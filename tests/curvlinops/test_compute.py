"""When factors are computed, and what a failure leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.backpack.run import images, targets
from tests.curvlinops.test_kfac import dense, grouped, operator
from tn_extensions import curvlinops as ours


def test_batches_and_seed() -> None:
    x = images(6, 2, 5, 4)
    model, y = grouped(x), targets(6)
    whole = operator(ours, model, [(x, y)], fisher_type="type-2")
    parts = [(x[:1], y[:1]), (x[1:], y[1:])]
    assert_close(
        dense(whole), dense(operator(ours, model, parts, fisher_type="type-2"))
    )
    first, second = (dense(operator(ours, model, parts, seed=3)) for _ in range(2))
    assert torch.equal(first, second)


def test_an_unused_use_does_not_reach_the_next_batch() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.layer(x), self.layer(2 * x)
            return second if float(x[0, 0].detach()) < 0 else first

    x = images(4, 3)
    x[:2, 0], x[2:, 0] = -1, 1
    model, y = Unused(), targets(4)
    halves = [(x[:2], y[:2]), (x[2:], y[2:])]
    options: dict[str, Any] = {"fisher_type": "type-2", "kfac_approx": "reduce"}
    options |= {"num_data": 4, "num_per_example_loss_terms": 1}
    whole, *parts = (
        operator(ours, model, data, **options)
        for data in (halves, halves[:1], halves[1:])
    )
    for op in (whole, *parts):
        op.compute_kronecker_factors()
    factors = [op._gradient_covariances["layer"] for op in (whole, *parts)]
    assert_close(factors[0], factors[1] + factors[2])


def test_a_failure_leaves_nothing() -> None:
    x = images(3, 2, 5, 4)
    model = grouped(x)
    op = operator(ours, model, [(x, targets(3))])
    dense(op)
    op._data = [(x, targets(3)), (x * torch.nan, targets(3))]
    with pytest.raises((ValueError, RuntimeError)):
        op.compute_kronecker_factors()
    assert not op._input_covariances and not op._gradient_covariances
    assert all(not module._forward_hooks for module in model.modules())
    op = operator(
        ours,
        model,
        [(x * torch.nan, targets(3))],
        check_deterministic=False,
        fisher_type="empirical",
    )
    with pytest.raises(ValueError, match="'0'") as error:
        op.compute_kronecker_factors()
    assert "of layer '0' must be finite" in str(error.value)
