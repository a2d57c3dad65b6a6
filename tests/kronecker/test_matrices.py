"""Matrices and their functions, against dense float64 ones of torch.linalg."""

from __future__ import annotations

from collections.abc import Callable

import pytest
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


def definite(size: int) -> Tensor:
    root = noise_tensor([G, size + 2, size])
    return root.mT @ root + 0.1 * torch.eye(size).double()


def cholesky_inverse() -> CholeskyInverse:
    square = definite(D)
    return CholeskyInverse(square, decompose(square, torch.full((G,), 0.2).double()))


MATRICES: dict[str, Callable[[], DenseMatrix | LowRank | CholeskyInverse]] = {
    "dense": lambda: DenseMatrix(definite(D)),
    "low rank": lambda: LowRank(noise_tensor([G, 2, D])),
    "low rank, shifted": lambda: LowRank(
        noise_tensor([G, 2, D]), 1, torch.tensor([0.5, 2.0]).double()[:, None, None]
    ),
    "inverse of low rank": lambda: LowRank(noise_tensor([G, 2, D])).inverse(DAMPING),
    "Cholesky inverse": cholesky_inverse,
}


def entries(matrix: DenseMatrix | LowRank | CholeskyInverse) -> Tensor:
    return matrix @ torch.eye(D).double().expand(G, D, D)


@pytest.mark.parametrize("name", MATRICES)
def test_functions(name: str) -> None:
    own = MATRICES[name]()
    expected = entries(own)
    assert_close(expected, expected.mT)
    vectors = noise_tensor([G, 5, D])
    assert_close(own.times(vectors), vectors @ expected)
    assert_close(own.trace(), torch.stack([each.trace() for each in expected]))
    assert_close(own.frobenius_norm(), torch.linalg.matrix_norm(expected))
    assert_close(own.det(), torch.linalg.det(expected))
    if name == "low rank":
        assert own.logdet().isneginf().all()
    else:
        assert_close(own.logdet(), torch.linalg.slogdet(expected)[1])
    values, vectors = own.eigh()
    assert_close(vectors * values.unsqueeze(1) @ vectors.mT, expected)
    assert_close(
        vectors.mT @ vectors, torch.eye(values.shape[1]).double().expand(G, -1, -1)
    )


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("damping", [DAMPING, torch.tensor([0.1, 3.0])])
def test_inverse(name: str, damping: float | Tensor) -> None:
    own, one = MATRICES[name](), torch.eye(D).double()
    # a float must not be rounded to float32
    shift = torch.as_tensor(damping, dtype=torch.float64).reshape(-1, 1, 1)
    expected = torch.linalg.inv(entries(own) + shift * one)
    found = own.inverse(damping) @ one.expand(G, D, D)
    assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_plain_low_rank_needs_damping() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        MATRICES["low rank"]().inverse(0.0)


PRODUCTS: dict[str, Callable[[], KroneckerProduct | EigendecomposedMatrix]] = {
    "dense": lambda: KroneckerProduct(definite(CO), definite(D)),
    "bias": lambda: KroneckerProduct(definite(CO), None),
    "low-rank tensors": lambda: KroneckerProduct(
        noise_tensor([G, 2, CO]), noise_tensor([G, 2, D])
    ),
    "structured": lambda: KroneckerProduct(
        LowRank(noise_tensor([G, 1, CO])).inverse(DAMPING), cholesky_inverse()
    ),
    "eigendecomposed": lambda: KroneckerProduct(definite(CO), definite(D)).eigh(),
    "eigendecomposed, rest": lambda: (
        KroneckerProduct(noise_tensor([G, 2, CO]), noise_tensor([G, 2, D]))
        .eigh()
        .inverse(DAMPING)
    ),
    "eigendecomposed bias": lambda: KroneckerProduct(definite(CO), None).eigh(),
}


def blocks(own: KroneckerProduct | EigendecomposedMatrix) -> Tensor:
    """Dense matrices ``[G, P, P]``."""
    columns = 1 if own.right is None else D
    size = CO * columns
    one = torch.eye(size).double().reshape(1, CO, columns, size).expand(G, -1, -1, -1)
    return (own @ one.contiguous()).reshape(G, size, size)


def assert_functions(
    own: KroneckerProduct | EigendecomposedMatrix, expected: Tensor
) -> None:
    whole = torch.block_diag(*expected)
    assert_close(own.trace(), whole.trace())
    assert_close(own.frobenius_norm(), torch.linalg.matrix_norm(whole))
    assert_close(own.det(), torch.linalg.det(whole))
    sign, logdet = torch.linalg.slogdet(whole)
    is_singular = torch.linalg.matrix_rank(whole) < len(whole)
    assert_close(own.logdet(), logdet.new_tensor(-torch.inf) if is_singular else logdet)


@pytest.mark.parametrize("name", PRODUCTS)
def test_functions_of_products(name: str) -> None:
    own = PRODUCTS[name]()
    expected = blocks(own)
    assert_functions(own, expected)
    assert_close(blocks(own.eigh()), expected)


def test_product_is_the_kronecker_product() -> None:
    left, right = definite(CO), definite(D)
    pairs = zip(left, right, strict=True)
    expected = torch.stack([torch.kron(*pair) for pair in pairs])
    assert_close(blocks(KroneckerProduct(left, right)), expected)


@pytest.mark.parametrize("name", PRODUCTS)
def test_exact_inverse(name: str) -> None:
    own = PRODUCTS[name]()
    expected = blocks(own)
    expected = torch.linalg.inv(
        expected + DAMPING * torch.eye(len(expected[0])).double()
    )
    found = own.eigh().inverse(DAMPING)
    assert_close(blocks(found), expected)
    assert_functions(found, expected)
    if isinstance(own, KroneckerProduct):
        assert_close(blocks(own.inverse(DAMPING, "exact")), expected)


@pytest.mark.parametrize("name", ["dense", "bias", "low-rank tensors", "structured"])
@pytest.mark.parametrize("method", ["fixed", "pi"])
def test_factored_inverse(name: str, method: str) -> None:
    own = PRODUCTS[name]()
    assert isinstance(own, KroneckerProduct)
    found = own.inverse(DAMPING, method)  # type: ignore[arg-type]
    left = blocks(KroneckerProduct(own.left, None))
    if own.right is None:
        expected = torch.linalg.inv(left + DAMPING * torch.eye(CO).double())
        assert_close(blocks(found), expected)
        return
    vectors = torch.eye(D).double().reshape(1, 1, D, D).expand(G, 1, D, D)
    one = torch.ones(G, 1, 1).double()
    right = (KroneckerProduct(one, own.right) @ vectors.contiguous()).squeeze(1)
    for group in range(G):
        b, a = left[group], right[group]
        of_a = of_b = torch.tensor(DAMPING).double()
        if method == "pi":
            pi = ((a.trace() / D) / (b.trace() / CO)).sqrt()
            of_a, of_b = pi * DAMPING**0.5, DAMPING**0.5 / pi
        expected = torch.kron(
            torch.linalg.inv(b + of_b * torch.eye(CO).double()),
            torch.linalg.inv(a + of_a * torch.eye(D).double()),
        )
        assert_close(blocks(found)[group], expected)


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match=r"method must be 'fixed' or 'pi' or 'exact'"):
        PRODUCTS["dense"]().inverse(0.1, "heuristic")  # type: ignore[call-arg,arg-type]
