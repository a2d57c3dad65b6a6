"""Matrices for tests, and what is asserted of all of them, against torch.linalg."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from tests.strategies import noise_tensor
from tn_extensions.kronecker.cholesky_inverse import CholeskyInverse
from tn_extensions.kronecker.dense import DenseMatrix
from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix
from tn_extensions.kronecker.kronecker_product import KroneckerProduct
from tn_extensions.kronecker.low_rank import LowRank
from tn_extensions.kronecker.square import decompose

G, CO, D = 2, 3, 4
DAMPING = 0.3
DAMPINGS = (DAMPING, torch.tensor([0.1, 3.0]))


def definite(size: int) -> Tensor:
    """Make positive definite matrices ``[G, size, size]``."""
    root = noise_tensor([G, size + 2, size])
    return root.mT @ root + 0.1 * torch.eye(size).double()


def cholesky_inverse() -> tuple[CholeskyInverse, Tensor]:
    """Make an inverse by Cholesky's decomposition, and its entries."""
    matrices = definite(D)
    entries = torch.linalg.inv(matrices + 0.2 * torch.eye(D).double())
    dampings = torch.full((G,), 0.2, dtype=torch.float64)
    return CholeskyInverse(matrices, decompose(matrices, dampings)), entries


def assert_is(own: DenseMatrix | LowRank | CholeskyInverse, expected: Tensor) -> None:
    """Assert products and functions of a matrix of entries ``[G, D, D]``."""
    one = torch.eye(D).double().expand(G, D, D)
    assert_close(own @ one, expected)
    vectors = noise_tensor([G, 5, D])
    assert_close(own.times(vectors), vectors @ expected)
    assert_close(own.trace(), torch.stack([each.trace() for each in expected]))
    assert_close(own.frobenius_norm(), torch.linalg.matrix_norm(expected))
    assert_close(own.det(), torch.linalg.det(expected))
    values, vectors = own.eigh()
    assert_close(vectors * values.unsqueeze(1) @ vectors.mT, expected)
    rank = values.shape[1]
    assert_close(vectors.mT @ vectors, torch.eye(rank).double().expand(G, -1, -1))
    if rank < D:
        assert own.logdet().isneginf().all()
    else:
        assert_close(own.logdet(), torch.linalg.slogdet(expected)[1])


def assert_inverts(
    own: DenseMatrix | LowRank | CholeskyInverse,
    entries: Tensor,
    damping: float | Tensor,
) -> None:
    """Assert a damped inverse, also that a float is not rounded to float32."""
    one = torch.eye(D).double()
    shift = torch.as_tensor(damping, dtype=torch.float64).reshape(-1, 1, 1)
    expected = torch.linalg.inv(entries + shift * one)
    found = own.inverse(damping) @ one.expand(G, D, D)
    assert_close(found, expected, rtol=1e-10, atol=1e-10)


def kron(left: Tensor, right: Tensor) -> Tensor:
    """Kronecker products of each group."""
    return torch.stack([torch.kron(*pair) for pair in zip(left, right, strict=True)])


def blocks(own: KroneckerProduct | EigendecomposedMatrix) -> Tensor:
    """Compute the entries ``[G, P, P]``."""
    columns = 1 if own.right is None else D
    size = CO * columns
    one = torch.eye(size).double().reshape(1, CO, columns, size).expand(G, -1, -1, -1)
    return (own @ one.contiguous()).reshape(G, size, size)


def assert_product_is(
    own: KroneckerProduct | EigendecomposedMatrix, expected: Tensor
) -> None:
    """Assert products and functions, which are of all groups together."""
    assert_close(blocks(own), expected)
    whole = torch.block_diag(*expected)
    assert_close(own.trace(), whole.trace())
    assert_close(own.frobenius_norm(), torch.linalg.matrix_norm(whole))
    assert_close(own.det(), torch.linalg.det(whole))
    logdet = torch.linalg.slogdet(whole)[1]
    is_singular = torch.linalg.matrix_rank(whole) < len(whole)
    assert_close(own.logdet(), logdet.new_tensor(-torch.inf) if is_singular else logdet)
