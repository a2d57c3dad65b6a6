"""Low-rank factors, shifted or not, and their inverses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.kronecker.matrices import (
    DAMPING,
    DAMPINGS,
    D,
    G,
    assert_inverts,
    assert_is,
)
from tests.strategies import noise_tensor
from tn_extensions.kronecker.low_rank import LowRank

KINDS = ("plain", "shifted", "inverse")


def make(kind: str) -> tuple[LowRank, Tensor]:
    """Make one, and its entries."""
    factor = noise_tensor([G, 2, D])
    entries, one = factor.mT @ factor, torch.eye(D).double()
    if kind == "plain":
        return LowRank(factor), entries
    if kind == "shifted":
        shift = torch.tensor([0.5, 2.0]).double()[:, None, None]
        return LowRank(factor, 1, shift), entries + shift * one
    return LowRank(factor).inverse(DAMPING), torch.linalg.inv(entries + DAMPING * one)


@pytest.mark.parametrize("kind", KINDS)
def test_functions(kind: str) -> None:
    assert_is(*make(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damping", DAMPINGS)
def test_inverse(kind: str, damping: float | Tensor) -> None:
    assert_inverts(*make(kind), damping)


def test_inverse_in_single_precision() -> None:
    """Of products with vectors of its span, few digits cancel."""
    rows, columns = 40, 100
    left, right = (
        torch.linalg.qr(noise_tensor([size, rows]))[0] for size in (rows, columns)
    )
    root = left @ torch.logspace(0, -4, rows).diag().double() @ right.T
    vectors = root.T @ noise_tensor([rows, 3])
    identity = torch.eye(columns, dtype=torch.float64)
    expected = torch.linalg.solve(root.T @ root + 1e-4 * identity, vectors)
    inverse = LowRank(root.float().unsqueeze(0)).inverse(1e-4)
    found = (inverse @ vectors.float()).squeeze(0).double()
    assert (found - expected).norm() < 2e-3 * expected.norm()


def test_complete_eigenbasis() -> None:
    own, entries = make("plain")
    values, vectors = own.eigh(complete=True)
    assert values.shape == (G, D)
    assert_close(vectors @ vectors.mT, torch.eye(D).double().expand(G, D, D))
    assert_close(vectors * values.unsqueeze(1) @ vectors.mT, entries)


def test_plain_ones_need_damping() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        make("plain")[0].inverse(0.0)
