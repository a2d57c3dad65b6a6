"""Operators on a CUDA device that is not there: nothing on the host, no waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fake_cuda import CUDA, FakeCuda
from tn_extensions.curvlinops import (
    EKFACLinearOperator,
    GGNDiagonalLinearOperator,
    GGNGramLinearOperator,
    KFACInverseLinearOperator,
    KFACLinearOperator,
)


def network() -> nn.Sequential:
    with torch.device(CUDA):
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, stride=2, groups=2),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 2, 2),
            nn.Flatten(),
            nn.Linear(32, 3),
        )


def made(kind: Any, cuda: FakeCuda, **options: Any) -> tuple[Callable[[], Any], Any]:
    """Return a function that makes an operator, and a vector of parameters."""
    model, loss = network(), nn.CrossEntropyLoss()
    data = [(cuda.tensor(4, 2, 8, 8), cuda.tensor(4, dtype=torch.long))]
    parameters = list(model.parameters())
    # which compares values
    options["check_deterministic"] = False

    def make() -> Any:
        return kind(model, loss, parameters, data, **options)

    return make, [cuda.tensor(*parameter.shape) for parameter in parameters]


@pytest.mark.parametrize(
    ("kind", "fisher", "approx"),
    [
        (KFACLinearOperator, "type-2", "expand"),
        (KFACLinearOperator, "mc", "reduce"),
        (EKFACLinearOperator, "empirical", "reduce"),
        (EKFACLinearOperator, "mc", "expand"),
    ],
)
def test_factors(kind: Any, fisher: str, approx: str, cuda: FakeCuda) -> None:
    make, vector = made(kind, cuda, fisher_type=fisher, kfac_approx=approx)

    def run() -> list[Any]:
        operator = make()
        numbers = [operator.trace, operator.logdet, operator.frobenius_norm]
        return [*(operator @ vector), *numbers]

    cuda.run(run)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (KFACLinearOperator, {"use_exact_damping": True}),
        (KFACLinearOperator, {"use_heuristic_damping": True}),
        (EKFACLinearOperator, {"use_exact_damping": True}),
    ],
)
def test_inverses(kind: Any, options: dict[str, Any], cuda: FakeCuda) -> None:
    make, vector = made(kind, cuda, fisher_type="empirical")

    def run() -> list[Tensor]:
        return KFACInverseLinearOperator(make(), damping=0.1, **options) @ vector

    cuda.run(run)


def test_diagonal(cuda: FakeCuda) -> None:
    make, vector = made(GGNDiagonalLinearOperator, cuda)
    cuda.run(lambda: make() @ vector)


def test_gram(cuda: FakeCuda) -> None:
    make, _ = made(GGNGramLinearOperator, cuda)

    def run() -> Tensor:
        operator = make()
        return operator @ torch.ones(operator.shape[1], device=CUDA)

    cuda.run(run)
