"""Derivatives of maximum pooling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.backpack.derivatives.products import COLUMNS, check
from tests.strategies import (
    noise_tensor,
)
from tn_extensions.backpack.derivatives import (
    MaxPoolDerivatives,
)

MAX = [
    (nn.MaxPool1d(2), (5,)),
    (nn.MaxPool2d(3, stride=2, padding=1, dilation=(2, 1)), (7, 6)),
    (nn.MaxPool2d(2, stride=1, ceil_mode=True), (4, 5)),
    (nn.MaxPool3d(2), (4, 2, 3)),
    (nn.AdaptiveMaxPool1d(3), (7,)),
    (nn.AdaptiveMaxPool2d((2, 3)), (5, 4)),
    (nn.AdaptiveMaxPool3d(2), (3, 2, 4)),
]


@pytest.mark.parametrize(("module", "sizes"), MAX, ids=str)
def test_maximum_pooling(module: Any, sizes: tuple[int, ...]) -> None:
    x = noise_tensor((3, 2, *sizes))
    check(MaxPoolDerivatives(), module, x)
    assert not module.return_indices

    mat = noise_tensor((COLUMNS, *module.output.shape))
    full = MaxPoolDerivatives().jac_t_mat_prod(module, None, None, mat)
    some = [2, 0]
    part = MaxPoolDerivatives().jac_t_mat_prod(
        module, None, None, mat[:, some], subsampling=some
    )
    assert torch.equal(part, full[:, some])


@pytest.mark.parametrize("num_channels", [3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_max_pool_chooses_as_torch_among_equals(
    num_channels: int, dtype: torch.dtype
) -> None:
    """After a ReLU there are many: the gradient goes to one of them."""
    module: Any = nn.MaxPool2d(3, stride=2, padding=1)
    x = noise_tensor((2, num_channels, 9, 8), dtype).round().relu().requires_grad_()
    module.input0, module.output = x, module(x)
    g = noise_tensor((1, *module.output.shape), dtype)
    (wanted,) = torch.autograd.grad(module.output, x, g[0])
    actual = MaxPoolDerivatives().jac_t_mat_prod(module, None, None, g)
    assert_close(actual[0], wanted)
