"""Low-rank factors, shifted or not, and their inverses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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


def test_plain_ones_need_damping() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        make("plain")[0].inverse(0.0)
