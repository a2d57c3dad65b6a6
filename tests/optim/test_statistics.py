"""Statistics of a step that are summed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from tests.optim.support import matrix_of
from tests.strategies import noise_tensor
from tn_extensions.optim.statistics import Gathered, Statistics, all_finite

D = 6


def part(number: int, rows: int) -> tuple[Statistics, Tensor]:
    """Statistics with a low-rank factor of so many rows, and that factor's matrix."""
    factor = noise_tensor((2, rows, D)) + number
    moments = noise_tensor((2, 3, D)) + number
    return {"inputs": factor, "moments": moments}, factor.mT @ factor


def test_sums() -> None:
    total, matrices = Gathered(), []
    for number, rows in enumerate((1, 1, 3)):  # the last one is no longer of low rank
        own, matrix = part(number, rows)
        matrices.append(matrix)
        total.add(Gathered({key: v.clone() for key, v in own.items()}, 4, rows))
        assert_close(matrix_of(total.sums["inputs"]), sum(matrices))
    assert (total.num_data, total.num_rows) == (12, 5)
    moments = sum(part(number, 1)[0]["moments"] for number in range(3))
    assert_close(total.sums["moments"], moments)


def test_all_finite() -> None:
    statistics, _ = part(0, 2)
    assert all_finite({}) and all_finite(statistics)
    for key, own in statistics.items():
        own[1, 0, 0] = torch.inf
        assert not all_finite(statistics), key
        own[1, 0, 0] = 0
