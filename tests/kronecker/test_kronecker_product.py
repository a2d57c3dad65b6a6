"""Kronecker products of dense, low-rank and inverted factors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.kronecker.matrices import (
    CO,
    DAMPING,
    D,
    G,
    assert_product_is,
    blocks,
    cholesky_inverse,
    definite,
    kron,
)
from tests.strategies import noise_tensor
from tn_extensions.kronecker.kronecker_product import KroneckerProduct
from tn_extensions.kronecker.low_rank import LowRank

KINDS = ("dense", "bias", "low-rank tensors", "inverses")


def make(kind: str) -> tuple[KroneckerProduct, Tensor, Tensor]:
    """Make one, and the entries of its factors."""
    if kind == "bias":
        left = definite(CO)
        return KroneckerProduct(left, None), left, torch.ones(G, 1, 1).double()
    if kind == "dense":
        left, right = definite(CO), definite(D)
        return KroneckerProduct(left, right), left, right
    if kind == "low-rank tensors":
        b, a = noise_tensor([G, 2, CO]), noise_tensor([G, 2, D])
        return KroneckerProduct(b, a), b.mT @ b, a.mT @ a
    b = noise_tensor([G, 1, CO])
    damped = b.mT @ b + DAMPING * torch.eye(CO).double()
    inverse, entries = cholesky_inverse()
    product = KroneckerProduct(LowRank(b).inverse(DAMPING), inverse)
    return product, torch.linalg.inv(damped), entries


@pytest.mark.parametrize("kind", KINDS)
def test_functions(kind: str) -> None:
    own, left, right = make(kind)
    expected = kron(left, right)
    assert_product_is(own, expected)
    assert_close(blocks(own.eigh()), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_inverse(kind: str) -> None:
    own, left, right = make(kind)
    expected = kron(left, right)
    expected = torch.linalg.inv(expected + DAMPING * torch.eye(len(expected[0])))
    found = own.inverse(DAMPING, "exact")
    assert_close(blocks(found), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["fixed", "pi"])
def test_factored_inverse(kind: str, method: str) -> None:
    own, left, right = make(kind)
    found = blocks(own.inverse(DAMPING, method))  # type: ignore[arg-type]
    for group, (b, a) in enumerate(zip(left, right, strict=True)):
        of_a = of_b = torch.tensor(DAMPING, dtype=torch.float64)
        if method == "pi" and kind != "bias":
            pi = ((a.trace() / D) / (b.trace() / CO)).sqrt()
            of_a, of_b = pi * DAMPING**0.5, DAMPING**0.5 / pi
        expected = torch.linalg.inv(b + of_b * torch.eye(CO).double())
        if kind != "bias":
            damped = a + of_a * torch.eye(D).double()
            expected = torch.kron(expected, torch.linalg.inv(damped))
        assert_close(found[group], expected)


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match=r"method must be 'fixed' or 'pi' or 'exact'"):
        make("dense")[0].inverse(0.1, "heuristic")  # type: ignore[arg-type]
