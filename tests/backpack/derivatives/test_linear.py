"""Derivatives of modules that are linear in their input."""

from __future__ import annotations

from typing import Any

import pytest
from backpack.custom_module.scale_module import ScaleModule
from torch import nn

from tests.backpack.derivatives.products import check
from tests.strategies import (
    noise_tensor,
)
from tn_extensions.backpack.derivatives import (
    DenseDerivatives,
    LinearModuleDerivatives,
    SumDerivatives,
)

LINEAR = [
    (nn.AvgPool1d(2), (5,)),
    (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), (6, 5)),
    (nn.AvgPool2d(2, ceil_mode=True, divisor_override=3), (5, 5)),
    (nn.AvgPool3d((1, 2, 2)), (2, 4, 3)),
    (nn.AdaptiveAvgPool1d(3), (7,)),
    (nn.AdaptiveAvgPool2d((2, None)), (5, 3)),
    (nn.AdaptiveAvgPool2d(4), (3, 5)),
    (nn.AdaptiveAvgPool3d((1, 2, 3)), (3, 3, 4)),
    (nn.Identity(), (3,)),
    (ScaleModule(0.5), (3,)),
]


@pytest.mark.parametrize(("module", "sizes"), LINEAR, ids=str)
def test_linear_modules(module: nn.Module, sizes: tuple[int, ...]) -> None:
    check(LinearModuleDerivatives(), module, noise_tensor((3, 2, *sizes)))


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_dense(shape: tuple[int, ...]) -> None:
    module = nn.Linear(4, 2).double()
    check(DenseDerivatives(), module, noise_tensor((3, *shape)))


def test_sums_of_branches() -> None:
    module: Any = nn.Identity()  # with respect to one branch
    check(SumDerivatives(), module, noise_tensor((3, 2, 4)))
