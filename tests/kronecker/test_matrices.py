"""Products with a matrix on either side, whatever its structure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.kronecker.matrices import CO, D, G, cholesky_inverse, definite
from tests.strategies import noise_tensor
from tn_extensions.kronecker.cholesky_inverse import CholeskyInverse
from tn_extensions.kronecker.dense import DenseMatrix
from tn_extensions.kronecker.low_rank import LowRank
from tn_extensions.kronecker.matrices import Structured, both_sides, structured

Case = Callable[[], tuple[Structured, Tensor]]


def dense_matrix() -> tuple[Structured, Tensor]:
    matrix = definite(D)
    return structured(matrix), matrix


CASES: list[Case] = [dense_matrix, cholesky_inverse]


@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize(("groups", "vectors"), [(G, 5), (G, 1), (1, 1)])
def test_both_sides(make: Case, groups: int, vectors: int) -> None:
    right, entries = make()
    if groups == 1:
        right, entries = right[:1], entries[:1]
    left = definite(CO)[:groups]
    matrices = noise_tensor((groups, CO, D, vectors))
    expected = torch.einsum("gab,gbcv->gacv", left, matrices)
    assert_close(both_sides(left, matrices, None), expected)
    expected = torch.einsum("gacv,gcd->gadv", expected, entries)
    assert_close(both_sides(left, matrices, right), expected)


def test_structures() -> None:
    rows = noise_tensor((G, 2, D))
    inverse, _ = cholesky_inverse()
    assert isinstance(structured(definite(D)), DenseMatrix)
    assert structured(inverse) is inverse and isinstance(inverse, CholeskyInverse)
    factor = structured(rows)
    assert isinstance(factor, LowRank)
    assert_close(factor @ torch.eye(D).double().expand(G, D, D), rows.mT @ rows)
