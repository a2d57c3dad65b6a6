"""Matrices of eigenvalues in Kronecker-factored bases, complete or not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kronecker.matrices import (
    CO,
    DAMPING,
    D,
    G,
    assert_product_is,
    definite,
    kron,
)
from tests.strategies import noise_tensor
from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix

KINDS = ("complete", "thin", "bias")


def make(kind: str) -> tuple[EigendecomposedMatrix, Tensor]:
    """Make one of two factors, and its entries."""
    if kind == "thin":
        b, a = (noise_tensor([G, 2, size]) for size in (CO, D))
        left, right = b.mT @ b, a.mT @ a
    else:
        left, right = definite(CO), definite(D)
    bases = []
    for matrices in (left, right):
        values, vectors = torch.linalg.eigh(matrices)
        kept = slice(-2, None) if kind == "thin" else slice(None)
        bases.append((values[:, kept], vectors[..., kept]))
    if kind == "bias":
        return EigendecomposedMatrix.of_eigenbases(bases[0], None), left
    return EigendecomposedMatrix.of_eigenbases(*bases), kron(left, right)


@pytest.mark.parametrize("kind", KINDS)
def test_functions(kind: str) -> None:
    assert_product_is(*make(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_inverse(kind: str) -> None:
    own, entries = make(kind)
    one = torch.eye(len(entries[0])).double()
    expected = torch.linalg.inv(entries + DAMPING * one)
    assert_product_is(own.inverse(DAMPING), expected)
