"""What one reads and changes of an operator, and its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import curvlinops as stock
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.backpack.run import classifier, images, targets
from tests.curvlinops.test_kfac import dense, grouped, operator
from tn_extensions import curvlinops as ours
from tn_extensions.curvlinops.stored import kept


def wide(x: Tensor) -> nn.Sequential:
    """Of five data, layers whose factors are of low rank."""
    layers = nn.Conv2d(4, 12, 3, stride=2), nn.Tanh(), nn.Conv2d(12, 4, 1, groups=2)
    return classifier(*layers, x=x)


READINGS: dict[str, Callable[[Any], Any]] = {
    "values": lambda factors: factors.values(),
    "items": lambda factors: [factor for _, factor in factors.items()],
    "keys": lambda factors: [factors[name] for name in factors],
    "get": lambda factors: [factors.get(name) for name in list(factors)],
    "copied": lambda factors: dict(factors).values(),
}


@pytest.mark.parametrize("read", READINGS.values(), ids=READINGS)
def test_changes_in_place(read: Any) -> None:
    """Of factors that are read; the operator uses what it hands out."""
    x, y = images(5, 4, 4, 3), targets(5)
    options: dict[str, Any] = {"fisher_type": "empirical"}
    op = operator(ours, wide(x), [(x, y)], groups="average", **options)
    op.compute_kronecker_factors()
    theirs = operator(stock, op._model_func, [(x, y)], **options)
    for attribute in ("_input_covariances", "_gradient_covariances"):
        mine = getattr(op, attribute)
        assert any(own.shape[1] < own.shape[2] for own in kept(mine).values())
        for factors in (mine, getattr(theirs, attribute)):
            for factor in read(factors):
                factor.mul_(2).add_(0.1 * torch.eye(factor.shape[-1]).to(factor))
    assert_close(dense(op), dense(theirs))
    for name in ("trace", "logdet", "frobenius_norm"):
        assert_close(getattr(op, name), getattr(theirs, name))
    inverse = stock.KFACInverseLinearOperator(theirs, damping=0.1)
    assert_close(dense(op.inverse(damping=0.1)), dense(inverse))


def test_changes_in_place_with_groups() -> None:
    x, y = images(5, 4, 4, 3), targets(5)
    op = operator(ours, wide(x), [(x, y)])
    op.compute_kronecker_factors()
    for factors in (op._input_covariances, op._gradient_covariances):
        for factor in factors.values():
            factor.zero_().add_(torch.eye(factor.shape[-1]).to(factor))
    identity = torch.eye(op.shape[1]).double()
    assert_close(dense(op), identity)
    assert op.logdet == 0


def test_state() -> None:
    x = images(3, 2, 5, 4)
    model, data = grouped(x), [(x, targets(3))]
    loss = nn.CrossEntropyLoss(torch.rand(3).double())
    op = operator(ours, model, data, loss=loss)
    matrix = dense(op)
    with pytest.warns(UserWarning, match="overwrite"):
        loaded = ours.KFACLinearOperator.from_state_dict(
            op.state_dict(), model, list(model.parameters()), data
        )
    assert torch.equal(dense(loaded), matrix)
    loaded.compute_kronecker_factors()
    assert_close(dense(loaded), matrix)


def test_state_of_stock() -> None:
    x = images(4, 4, 6, 6)
    model = classifier(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), x=x)
    data = [(x, targets(4))]
    theirs = operator(stock, model, data)
    matrix = dense(theirs)
    with pytest.warns(UserWarning, match="overwrite"):
        loaded = ours.KFACLinearOperator.from_state_dict(
            theirs.state_dict(), model, list(model.parameters()), data
        )
    assert_close(dense(loaded), matrix)
    loaded.compute_kronecker_factors()
    assert_close(dense(loaded), matrix)
