"""Small networks and dense references of a preconditioned step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tests.reference.jacobian import kfac_factor
from tests.strategies import noise_tensor
from tn_extensions.kronecker import square
from tn_extensions.kronecker.factors import dense, is_low_rank
from tn_extensions.optim import KFACPreconditioner, layer

Batch = tuple[Tensor, Tensor]


@contextmanager
def decomposed_in_place() -> Iterator[None]:
    """Treat factors of eight columns and more as large ones are, by several strips."""
    with patch.object(layer, "IN_PLACE", 8), patch.object(square, "_LEAST_STRIP", 4):
        yield


def matrix_of(average: Tensor) -> Tensor:
    """Return the matrix of an average, which is a low-rank factor or a triangle."""
    return dense(average) if is_low_rank(average) else square.mirrored(average)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Make a network with groups, circular padding and a transposed convolution."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular", groups=2),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(384, 3),
        )
    return model.to(dtype)


def identified() -> nn.Sequential:
    """Make a network whose factors have distinct eigenvalues: unique eigenvectors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 2),
            nn.Tanh(),
            nn.ConvTranspose2d(4, 4, 2, groups=2),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
    return model.double()


def batch(size: int = 6, number: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    """Images and labels for :func:`network`."""
    x = noise_tensor([8, size, 2, 3, 3], dtype)[number]
    return x, torch.arange(number, number + size) % 3


def loss_of(model: nn.Module, data: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(data[0]), data[1])


def train(
    model: nn.Module,
    preconditioner: Any,
    steps: Sequence[int],
    lr: float = 0.05,
    data: Callable[[int], Batch] = lambda number: batch(number=number % 8),
) -> list[Tensor]:
    """Do some steps of SGD, and return the parameters."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for number in steps:
        optimizer.zero_grad()
        loss_of(model, data(number)).backward()
        preconditioner.step()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def gradients(model: nn.Module) -> list[Tensor]:
    found = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in found)
    return [g.clone() for g in found if g is not None]


def preconditioned(
    model: nn.Module, data: Batch, **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients before and after a step."""
    preconditioner = KFACPreconditioner(model, **{"kl_clip": None, **options})
    loss_of(model, data).backward()
    before = gradients(model)
    preconditioner.step()
    return before, gradients(model)


def reference_factors(
    module: Any, x: Tensor, g: Tensor, approx: str
) -> tuple[Tensor, Tensor]:
    """Compute ``A`` of patches with a one, and ``B`` of gradients ``[N, C_out, P]``."""
    A = kfac_factor(module, x, approx, bias=module.bias is not None)
    if approx == "expand":
        A = A / g.shape[2]
    g = g.unflatten(1, (module.groups, -1))
    if approx == "reduce":
        g = g.sum(3, keepdim=True)
    B = torch.einsum("ngap,ngbp->gab", g, g) / len(g)
    return A, B


def reference_step(
    module: Any, A: Tensor, B: Tensor, gradient: Tensor, damping: float
) -> Tensor:
    """Compute ``(B + d I)^-1 V (A + d I)^-1`` for gradients ``[G, CO, D]``."""
    eye_a, eye_b = (torch.eye(f.shape[-1]).to(f) * damping for f in (A, B))
    return torch.linalg.inv(B + eye_b) @ gradient @ torch.linalg.inv(A + eye_a)


def joint(module: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Join a layer's gradients to ``[G, CO, D]``."""
    groups = module.groups
    parts = weight.chunk(groups, 0 if module.transposed else 0)
    rows = [
        (part.transpose(0, 1) if module.transposed else part).flatten(1)
        for part in parts
    ]
    matrix = torch.stack(rows)
    if bias is None:
        return matrix
    return torch.cat([matrix, bias.reshape(groups, -1, 1)], 2)


def assert_same_state(expected: Any, actual: Any) -> None:
    assert type(expected) is type(actual)
    if isinstance(expected, dict):
        assert list(expected) == list(actual)
        for key in expected:
            assert_same_state(expected[key], actual[key])
    elif isinstance(expected, (tuple, list)):
        assert len(expected) == len(actual)
        for one, other in zip(expected, actual, strict=True):
            assert_same_state(one, other)
    elif isinstance(expected, Tensor):
        assert torch.equal(expected, actual)
    else:
        assert expected == actual
