"""KFAC-expand and KFAC-reduce are those of curvlinops."""

from __future__ import annotations

from typing import Any

import pytest
from curvlinops import KFACLinearOperator
from torch import Tensor, nn
from torch.testing import assert_close

from tests.backpack.run import classifier, images, run_copy, targets
from tn_extensions import backpack as ours


def small_cnn(x: Tensor) -> nn.Sequential:
    """Only what curvlinops has factors of: ``Conv2d`` and ``Linear``."""
    return classifier(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 4, (1, 3), padding="same", bias=False),
        nn.Sigmoid(),
        nn.AdaptiveAvgPool2d((2, 1)),
        nn.Conv2d(4, 2, (2, 1)),
        x=x,
    )


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.MSELoss])
def test_type_2_factors(kind: Any, reduction: str, approx: str) -> None:
    x = images(5, 2, 8, 7)
    model, loss = small_cnn(x), kind(reduction=reduction)
    y = targets(5) if kind is nn.CrossEntropyLoss else images(5, 3)
    theirs = KFACLinearOperator(
        model,
        loss,
        list(model.parameters()),
        [(x, y)],
        fisher_type="type-2",
        kfac_approx=approx,
        check_deterministic=False,
    )
    theirs.compute_kronecker_factors()
    found = run_copy(model, ours.KFLR(approx=approx), x, y=y, loss=loss)
    layers = [f"{i}" for i, module in enumerate(model) if list(module.parameters())]
    assert len(layers) == 4
    for layer in layers:
        b, a = found[f"{layer}.weight"]
        assert_close(a, theirs._input_covariances[layer])
        assert_close(b, theirs._gradient_covariances[layer])
