"""Averages and decompositions that share a square."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.strategies import noise_tensor
from tn_extensions.kronecker import square
from tn_extensions.kronecker.cholesky_inverse import CholeskyInverse
from tn_extensions.kronecker.square import (
    above,
    decompose,
    mirrored,
    put_below,
    symmetrize,
)

G, D = 2, 7
DAMPING = torch.tensor([0.1, 2.0], dtype=torch.float64)


@pytest.fixture(autouse=True, params=[1, 3, 128])
def strip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(square, "_LEAST_STRIP", request.param)


def average() -> Tensor:
    """Symmetric of rank three, with something else below."""
    root = noise_tensor([G, 3, D])
    return (root.mT @ root).triu() + noise_tensor([G, D, D]).tril(-1)


def test_what_is_below_stays() -> None:
    matrices = average()
    before = matrices.clone()
    for rows, columns, part in above(matrices):
        assert part.shape == before[:, rows, columns].shape
        part.mul_(2)
    assert torch.equal(matrices.triu(), 2 * before.triu())
    assert torch.equal(matrices.tril(-1), before.tril(-1))


def test_mirror_images() -> None:
    matrices = average()
    expected = mirrored(matrices)
    assert torch.equal(expected, expected.mT)
    assert torch.equal(expected.triu(), matrices.triu())
    assert symmetrize(matrices) is matrices
    assert torch.equal(matrices, expected)


def test_take_over_what_is_below() -> None:
    matrices, others = average(), noise_tensor([G, D, D])
    expected = matrices.triu() + others.tril(-1)
    assert put_below(matrices, others) is matrices
    assert torch.equal(matrices, expected)


@pytest.mark.parametrize("is_transposed", [False, True])
def test_decomposition(is_transposed: bool) -> None:
    matrices = average().mT.contiguous().mT if is_transposed else average()
    before = matrices.clone()
    identity = torch.eye(D, dtype=torch.float64)
    damped = mirrored(matrices) + DAMPING[:, None, None] * identity
    pivots = decompose(matrices, DAMPING)
    assert torch.equal(matrices.triu(), before.triu())
    lower = matrices.tril(-1) + identity
    assert_close(lower @ (pivots.unsqueeze(2) * lower.mT), damped)
    # and again, whatever the former decomposition was
    assert torch.equal(decompose(matrices, DAMPING), pivots)

    inverse = CholeskyInverse(matrices, pivots)
    assert inverse.is_finite
    vectors = noise_tensor([G, D, 4])
    expected = torch.linalg.solve(damped, vectors)
    assert_close(inverse @ vectors, expected)
    assert_close(inverse.times(vectors.mT), expected.mT)
    assert_close(inverse[1] @ vectors[1], expected[1])
    assert_close(inverse[1].times(vectors[1].mT), expected[1].mT)


def test_solves_for_a_basis_of_rows_of_low_rank() -> None:
    matrices = average()
    identity = torch.eye(D, dtype=torch.float64)
    damped = mirrored(matrices) + DAMPING[:, None, None] * identity
    inverse = CholeskyInverse(matrices, decompose(matrices, DAMPING))
    low = noise_tensor([G, 40, 2]) @ noise_tensor([G, 2, D])
    solved = CholeskyInverse._solved
    with patch.object(
        CholeskyInverse, "_solved", autospec=True, side_effect=solved
    ) as calls:
        found = inverse.times(low)
    assert calls.call_args.args[1].shape == (G, 18, D)
    assert_close(found, torch.linalg.solve(damped, low.mT).mT)
    assert_close(inverse[1].times(low[1]), found[1])
    left = noise_tensor([G, 5, 40])
    assert_close(inverse.times(low, left), left @ found)
    full = noise_tensor([G, 40, D + 33])[:, :, :D] + noise_tensor([G, 40, D])
    expected = torch.linalg.solve(damped, full.mT).mT
    assert_close(inverse.times(full), expected)
    assert_close(inverse.times(full, left), left @ expected)


def test_not_positive_definite() -> None:
    matrices = average()
    before = matrices.triu()
    with pytest.raises(torch.linalg.LinAlgError):
        decompose(matrices, torch.tensor([0.1, -1.0]))
    assert torch.equal(matrices.triu(), before)


def test_overflow() -> None:
    matrices = torch.full([1, D, D], 1e30)
    matrices.diagonal(dim1=1, dim2=2).fill_(1e-30)
    with pytest.raises(torch.linalg.LinAlgError):
        decompose(matrices, torch.zeros(1))


def test_infinite_pivot() -> None:
    matrices = torch.eye(D).unsqueeze(0)
    matrices[0, -1, -1] = torch.inf
    pivots = decompose(matrices, torch.zeros(1))
    assert not CholeskyInverse(matrices, pivots).is_finite
