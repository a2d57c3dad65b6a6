"""Kronecker products of dense, low-rank and inverted factors."""

from __future__ import annotations

from typing import Any

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
from tests.messages import assert_in_form
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


@pytest.mark.parametrize("damping", [(0.2, 0.7), (torch.tensor([0.2, 1.0]), 0.7)])
def test_a_damping_of_each_factor_and_group(damping: Any) -> None:
    own, left, right = make("dense")
    found = blocks(own.inverse(damping))
    of_right, of_left = (torch.as_tensor(each).expand(G).double() for each in damping)
    damped = (
        torch.linalg.inv(each + shift[:, None, None] * torch.eye(each.shape[1]))
        for each, shift in ((left, of_left), (right, of_right))
    )
    assert_close(found, kron(*damped))


def test_damping_is_not_split_where_a_mean_is_zero() -> None:
    zero = torch.zeros(G, CO, CO).double()
    inverse = KroneckerProduct(zero, definite(D)).inverse(DAMPING, "pi")
    assert isinstance(inverse, KroneckerProduct)
    expected = torch.eye(CO).double().expand(G, -1, -1) / DAMPING
    assert_close(inverse.left, expected)


def test_least_damping() -> None:
    own, left, _ = make("dense")
    minimum = 100 * DAMPING
    inverse = own.inverse(DAMPING, "pi", minimum)
    assert isinstance(inverse, KroneckerProduct)
    damped = left + minimum * torch.eye(CO).double()
    assert_close(inverse.left, torch.linalg.inv(damped))


def test_factors_are_inverted_by_a_function() -> None:
    own, left, right = make("dense")
    calls = []

    def invert(factor: Any, damping: Any) -> Tensor:
        calls.append((factor.entries, damping))
        return torch.full_like(factor.entries, len(calls))

    found = own.inverse((0.1, 0.2), invert=invert)
    assert [damping for _, damping in calls] == [0.1, 0.2]
    assert [entries for entries, _ in calls] == [right, left]
    assert isinstance(found, KroneckerProduct)
    assert torch.equal(found.right, torch.ones_like(right))  # type: ignore[arg-type]
    assert torch.equal(found.left, torch.full_like(left, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["fixed", "exact"])
def test_singular_products(method: Any) -> None:
    own = KroneckerProduct(torch.zeros(G, CO, CO), definite(D))
    with pytest.raises(torch.linalg.LinAlgError):
        own.inverse(0.0, method)


WRONG = (("pi", (0.1, 0.2)), ("exact", (0.1, 0.2)), ("exact", torch.ones(G)))


@pytest.mark.parametrize(("method", "damping"), WRONG, ids=["pi", "exact", "groups"])
def test_wrong_damping(method: Any, damping: Any) -> None:
    with pytest.raises(ValueError, match="damping must") as error:
        make("dense")[0].inverse(damping, method)
    assert_in_form(error.value, "KroneckerProduct.inverse", "damping")


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match=r"method must be 'fixed' or 'pi' or 'exact'"):
        make("dense")[0].inverse(0.1, "heuristic")  # type: ignore[arg-type]
