"""Products of derivatives with vectors and matrices against Jacobians."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from tests.reference.curvature import jacobian
from tests.strategies import (
    noise_tensor,
)

COLUMNS = 2


def check(derivatives: Any, module: Any, x: Tensor, *args: Any) -> None:
    """Propagating forward, and both ways of backpropagating."""
    module.input0, module.output = x, module(x, *args).detach()
    j = jacobian(lambda x: module(x, *args), x)

    tangents = noise_tensor((COLUMNS, *x.shape))
    wanted = torch.einsum("ncmi,vmi->vnc", j, tangents.flatten(2))
    actual = derivatives.jac_mat_prod(module, None, None, tangents)
    assert_close(actual, wanted.view_as(actual), rtol=1e-9, atol=1e-11)

    mat = noise_tensor((COLUMNS, *module.output.shape))
    wanted = torch.einsum("ncmi,vnc->vmi", j, mat.flatten(2))
    actual = derivatives.jac_t_mat_prod(module, None, None, mat)
    assert_close(actual, wanted.reshape(COLUMNS, *x.shape), rtol=1e-9, atol=1e-11)

    root = noise_tensor((module.output[0].numel(), COLUMNS))
    block = root @ root.T
    wanted = torch.einsum("ncmi,cd,ndmj->ij", j, block, j) / len(x)
    actual = derivatives.ea_jac_t_mat_jac_prod(module, None, None, block)
    assert_close(actual, wanted, rtol=1e-9, atol=1e-11)


def jvp(function: Any, x: Tensor, tangent: Tensor) -> Tensor:
    """Directional derivative."""
    product: Tensor = torch.func.jvp(function, (x,), (tangent,))[1]
    return product
