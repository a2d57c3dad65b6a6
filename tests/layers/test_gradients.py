"""Gradients of each datum, by uses of a layer, against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.strategies import noise_tensor
from tn_extensions.layers.gradients import of_one_dtype, per_sample_gradients
from tn_extensions.layers.module import Pairs, Use

N = 3
LAYERS: list[tuple[nn.Module, list[tuple[int, ...]]]] = [
    (nn.Conv2d(2, 4, (2, 3), groups=2).double(), [(2, 4, 5)]),
    (nn.Conv2d(2, 4, (2, 3), groups=2).double(), [(2, 4, 5), (2, 3, 3)]),
    (nn.Linear(3, 2).double(), [(3,)]),
    (nn.Linear(3, 2).double(), [(3,), (4, 3)]),
]
"""Layers, and the shapes of their inputs in each use."""


def uses(module: Any, shapes: list[tuple[int, ...]]) -> tuple[Pairs, list[Tensor]]:
    """Make uses with gradients of their outputs, and these as outputs have them."""
    pairs, cotangents = [], []
    for shape in shapes:
        x = noise_tensor((N, *shape))
        output = module(x).detach()
        use = Use.of(module, x, output, "separate", N)
        cotangents.append(noise_tensor((*output.shape, 1)).squeeze(-1))
        pairs.append((use, use.gradient(cotangents[-1])))
    return pairs, cotangents


def expected(
    module: Any, shapes: list[tuple[int, ...]], cotangents: list[Tensor], key: str
) -> Tensor:
    """Gradients of each datum by autograd."""
    own = getattr(module, key)
    found = []
    for n in range(N):
        total = sum(
            (module(noise_tensor((N, *shape))[n : n + 1]) * g[n : n + 1]).sum()
            for shape, g in zip(shapes, cotangents, strict=True)
        )
        assert isinstance(total, Tensor)
        found += torch.autograd.grad(total, own)
    return torch.stack(found)


@pytest.mark.parametrize("key", ["weight", "bias"])
@pytest.mark.parametrize(("module", "shapes"), LAYERS)
def test_per_sample_gradients(
    module: Any, shapes: list[tuple[int, ...]], key: str
) -> None:
    pairs, cotangents = uses(module, shapes)
    gradients = expected(module, shapes, cotangents, key)
    found = per_sample_gradients(pairs, key)
    assert_close(found.reshape(gradients.shape), gradients)


def test_half_precision_takes_the_wider_one() -> None:
    x, S = torch.ones(2, dtype=torch.bfloat16), torch.ones(2)
    assert [own.dtype for own in of_one_dtype(x, S)] == [torch.float32] * 2
    assert [own.dtype for own in of_one_dtype(x, x)] == [torch.bfloat16] * 2
