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
from tn_extensions.kronecker.inverse import damped_inverse, split_damping
from tn_extensions.kronecker.low_rank import LowRank
from tn_extensions.kronecker.square import symmetrize

G, D = 2, 6


def matrix(factor: Tensor) -> Tensor:
    return factor.mT @ factor if factor.shape[1] < D else factor


def factor(rows: int, number: int = 0) -> Tensor:
    """A low-rank factor of some rows, or a matrix."""
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


@pytest.mark.parametrize("rows", [2, 8])
@pytest.mark.parametrize("damping", [0.1, torch.tensor([0.1, 3.0])])
def test_inverse(rows: int, damping: float | Tensor) -> None:
    own = factor(rows)
    inverse = damped_inverse(own, damping)
    assert isinstance(inverse, LowRank) == (rows < D)
    shift = torch.as_tensor(damping).double().reshape(-1, 1, 1)
    identity = torch.eye(D).double()
    expected = torch.linalg.inv(matrix(own) + shift * identity)
    assert_close(inverse @ identity.expand(G, D, D), expected)


def test_inverse_of_a_root_in_single_precision() -> None:
    """Of products with vectors of its span, few digits cancel."""
    rows, columns = 40, 100
    left, right = (
        torch.linalg.qr(noise_tensor([size, rows]))[0] for size in (rows, columns)
    )
    root = left @ torch.logspace(0, -4, rows).diag().double() @ right.T
    vectors = root.T @ noise_tensor([rows, 3])
    identity = torch.eye(columns, dtype=torch.float64)
    expected = torch.linalg.solve(root.T @ root + 1e-4 * identity, vectors)
    inverse = damped_inverse(root.float().unsqueeze(0), 1e-4)
    found = (inverse @ vectors.float()).squeeze(0).double()
    assert (found - expected).norm() < 2e-3 * expected.norm()


def test_a_root_needs_damping() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        damped_inverse(factor(2), 0.0)


def test_split_damping() -> None:
    right, left = factor(2), factor(8, 1)
    a, b = split_damping(right, left, 0.09, 1e-8)
    assert_close(a * b, torch.full((G,), 0.09).double())
    means = [torch.stack([m.trace() / D for m in matrix(f)]) for f in (right, left)]
    assert_close(a / b, means[0] / means[1])
    zero = torch.zeros(G, D, D).double()
    assert_close(
        split_damping(right, zero, 0.09, 1e-8)[0], torch.full((G,), 0.09).double()
    )


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
