"""Each process draws its own slices; gradients are averaged as ever."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.dropout.cases import Spy, defined_weight_gradient
from tests.optim.test_distributed import launch
from tests.strategies import noise_tensor
from tn_extensions.dropout import convert

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"
)


def test_gradients_are_the_mean_of_the_estimates() -> None:
    launch(2, check)


def check() -> None:
    rank = dist.get_rank()
    torch.manual_seed(0)
    plain = nn.Conv2d(2, 3, 3).double()
    model = DistributedDataParallel(convert(plain, {"n": 0.5, "i1": 0.5}))
    torch.manual_seed(rank)
    x = noise_tensor((6, 2, 8, 8)) * (1 + rank)
    with Spy() as spy:
        output = model(x)
    generator = torch.Generator().manual_seed(0)
    output.backward(torch.randn(output.shape, dtype=torch.float64, generator=generator))
    twin = nn.Conv2d(2, 3, 3).double()
    own = defined_weight_gradient(twin, x, spy.sampled[0])
    both = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(both, own)
    assert not torch.allclose(both[1], 2 * both[0])
    assert plain.weight.grad is not None
    assert torch.allclose(plain.weight.grad, torch.stack(both).mean(0))
