"""Products of a layer's blocks with vectors that are shaped as its parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.strategies import noise_tensor
from tn_extensions.kronecker.kronecker_product import KroneckerProduct
from tn_extensions.kronecker.multiply import multiply

VECTORS = 2
LAYERS = [
    nn.Linear(3, 4),
    nn.Conv2d(4, 6, (3, 2), groups=2),
    nn.ConvTranspose1d(4, 6, 3, groups=2),
]


def rows_of(module: Any, weight: torch.Tensor) -> torch.Tensor:
    """Reshape a kernel to ``[C_out, D]``, by the channels of the output."""
    if not getattr(module, "transposed", False):
        return weight.flatten(1)
    parts = weight.unflatten(0, (module.groups, -1)).transpose(1, 2)
    return parts.flatten(0, 1).flatten(1)


@pytest.mark.parametrize("module", LAYERS, ids=str)
@pytest.mark.parametrize("joint", [False, True])
def test_blocks_of_groups(module: Any, joint: bool) -> None:
    """Each group's block is ``B kron A``, of rows that are channels of the output."""
    groups = getattr(module, "groups", 1)
    weight = noise_tensor((*module.weight.shape, VECTORS))
    bias = noise_tensor((*module.bias.shape, VECTORS))
    size = len(module.bias) // groups
    columns = module.weight[0].numel()
    if getattr(module, "transposed", False):
        columns = module.weight.numel() // len(module.bias)
    output = noise_tensor((groups, size, size))
    inputs = noise_tensor((groups, columns + joint, columns + joint))
    inputs, output = inputs @ inputs.mT, output @ output.mT
    if joint:
        blocks = {"joint": KroneckerProduct(output, inputs)}
    else:
        blocks = {
            "weight": KroneckerProduct(output, inputs),
            "bias": KroneckerProduct(output, None),
        }
    found = multiply(module, "separate", blocks, {"weight": weight, "bias": bias})
    assert {key: own.shape for key, own in found.items()} == {
        "weight": weight.shape,
        "bias": bias.shape,
    }
    for v in range(VECTORS):
        matrices = rows_of(module, weight[..., v])
        if joint:
            matrices = torch.cat([matrices, bias[:, v, None]], 1)
        matrices = matrices.unflatten(0, (groups, -1))
        expected = (output @ matrices @ inputs).flatten(0, 1)
        own = rows_of(module, found["weight"][..., v])
        if joint:
            own = torch.cat([own, found["bias"][:, v, None]], 1)
        else:
            product = output @ bias[:, v].unflatten(0, (groups, -1, 1))
            assert_close(found["bias"][:, v], product.flatten())
        assert_close(own, expected)


def test_half_precision_is_multiplied_in_single() -> None:
    module = nn.Linear(3, 4)
    block = KroneckerProduct(1e5 * torch.eye(4)[None], 1e-5 * torch.eye(3)[None])
    vector = torch.ones(4, 3, 1, dtype=torch.float16)
    (found,) = multiply(
        module, "separate", {"weight": block}, {"weight": vector}
    ).values()
    assert found.dtype == torch.float16
    assert_close(found, vector)
