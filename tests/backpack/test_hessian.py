"""The Hessian's diagonal where branches have curvature."""

from __future__ import annotations

import pytest
from backpack.custom_module.branching import Parallel
from torch import nn

from tests.backpack.run import classifier, images
from tests.backpack.suite import (
    assert_as_jacobians,
)
from tests.backpack.test_suite import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_branches_with_curvature(name: str) -> None:
    """Square roots that start within a branch stay apart from the others."""
    x = images(2, 2, 4, 3)
    branches = Parallel(
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.Tanh(), nn.Conv2d(2, 2, 1)),
        nn.Conv2d(2, 2, 1),
        nn.Sequential(nn.Sigmoid(), nn.Conv2d(2, 2, 1), nn.Sigmoid()),
    )
    model = classifier(nn.Conv2d(2, 2, 2), nn.Tanh(), branches, nn.Tanh(), x=x)
    assert_as_jacobians(name, model, x)
