"""Averages, eigenbases and inverses of factors, as matrices and as few vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.strategies import noise_tensor
from tn_extensions.kronecker import square
from tn_extensions.kronecker.factors import (
    averaged,
    completed,
    eigenbasis,
    logdet,
)
from tn_extensions.kronecker.square import symmetrize

G, D = 2, 6


def matrix(factor: Tensor) -> Tensor:
    return factor.mT @ factor if factor.shape[1] < D else factor


def factor(rows: int, number: int = 0) -> Tensor:
    """Make a low-rank factor with few rows, otherwise a matrix."""
    root = noise_tensor([3, G, rows, D])[number]
    return root if rows < D else root.mT @ root


@pytest.mark.parametrize("old", [1, 3, 8])
@pytest.mark.parametrize("new", [1, 3, 8])
@pytest.mark.parametrize("limit", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("strip", [1, 2, 4, 128])
def test_average(
    old: int, new: int, limit: float, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(square, "_LEAST_STRIP", strip)
    first, second = factor(old), factor(new, 1)
    expected = 0.7 * matrix(first) + 0.3 * matrix(second)
    found = averaged(first, second, 0.7, limit)
    assert_close(matrix(found).triu(), expected.triu())
    # and once more, with a triangle that was left behind
    expected = 0.6 * expected + 0.4 * matrix(factor(1, 2))
    found = averaged(found, factor(1, 2), 0.6, limit)
    is_kept = old + new + 1 <= limit * D and max(old, new) < D
    assert (found.shape[1] < D) == is_kept
    assert_close(matrix(found if is_kept else symmetrize(found)), expected)
    if old == new == 8:
        assert found is first
    assert averaged(None, second, 0.7, limit) is second


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("scale", [1e-60, 1.0, 1e60])
def test_eigenbasis(rows: int, scale: float) -> None:
    own = factor(rows) * scale
    values, vectors = eigenbasis(own)
    assert values.shape[1] == min(rows, D)
    expected = matrix(own)
    assert_close(vectors * values.unsqueeze(1) @ vectors.mT / scale, expected / scale)
    assert_close(eigenbasis(torch.zeros(1, D, D))[0], torch.zeros(1, D))


def test_eigenvalues_that_rounding_made_negative() -> None:
    """They are zero; a negative one of another size is an eigenvalue."""
    matrices = torch.diag_embed(torch.tensor([[-1e-18, 1.0], [-1e-3, 1.0]]).double())
    values, _ = eigenbasis(matrices)
    assert torch.equal(values, torch.tensor([[0.0, 1.0], [-1e-3, 1.0]]).double())


@pytest.mark.parametrize("fails_by", ["nan", "error"])
def test_eigenbasis_in_double_precision(
    fails_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where LAPACK fails in single precision; if it fails in both, that is an error."""
    eigh, failing = torch.linalg.eigh, {torch.float32}

    def fail(matrices: Tensor) -> tuple[Tensor, Tensor]:
        if matrices.dtype not in failing:
            return eigh(matrices)
        if fails_by == "error":
            raise torch.linalg.LinAlgError("no convergence")
        values, vectors = eigh(matrices)
        return values * torch.nan, vectors

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    own = factor(8).float()
    values, vectors = eigenbasis(own)
    assert values.dtype == vectors.dtype == torch.float32
    assert_close(vectors * values.unsqueeze(1) @ vectors.mT, own)
    failing.add(torch.float64)
    with pytest.raises(torch.linalg.LinAlgError):
        eigenbasis(own)


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_completed_bases(rows: int) -> None:
    _, basis = eigenbasis(factor(rows))
    found = completed(basis)
    assert torch.equal(found[:, :, :rows], basis)
    assert_close(found.mT @ found, torch.eye(D).double().expand(G, D, D))
    assert completed(found) is found


def test_logdet() -> None:
    matrices = torch.tensor([[2.0, 3.0], [2.0, 0.0], [2.0, -1e-20]])
    found = logdet(torch.diag_embed(matrices))
    infinite = torch.tensor(-torch.inf)
    expected = torch.stack([torch.tensor(6.0).log(), infinite, infinite])
    assert_close(found, expected)
