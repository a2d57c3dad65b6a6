"""Matrices of low rank are split into a basis and what it is multiplied with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.strategies import examples, noise_tensor
from tn_extensions.kronecker.span import Span


def product(rows: int, columns: int, rank: int, batch: tuple[int, ...] = ()) -> Tensor:
    """Make a matrix of that rank."""
    return noise_tensor((*batch, rows, rank)) @ noise_tensor((*batch, rank, columns))


@given(st.integers(24, 80), st.integers(1, 200), st.booleans(), st.data())
@examples(50)
def test_low_rank(rows: int, columns: int, batched: bool, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, rows // 4))
    matrices = product(rows, columns, rank, (2,) if batched else ())
    span = Span()
    found = span.split(matrices)
    # those of few rows are not worth it
    assert (found is None) == (2 * (rows // 4 + 8) > rows)
    if found is not None:
        basis, inner = found
        assert inner.shape[-2] < 0.6 * rows
        assert torch.allclose(basis.mT @ basis, torch.eye(basis.shape[-1]).double())
        assert torch.allclose(basis @ inner, matrices, atol=1e-10)


def test_float32_loses_few_digits() -> None:
    matrices = product(512, 1024, 128)
    found = Span().split(matrices.float())
    assert found is not None
    error = (found[0].double() @ found[1].double() - matrices).norm()
    assert error < 3e-6 * matrices.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gives_up_where_more_is_left(dtype: torch.dtype) -> None:
    low = product(64, 300, 16).to(dtype)
    more = low + 1e-3 * product(64, 300, 64).to(dtype)
    span = Span()
    assert span.split(low) is not None
    assert span.split(more) is None and not span.is_low
    assert span.split(low) is None, "no further attempt"


def test_all_of_a_batch_must_be_low() -> None:
    low = product(64, 300, 16)
    assert Span().split(torch.stack([low, low])) is not None
    assert Span().split(torch.stack([low, product(64, 300, 64)])) is None
    # however small the others are
    assert Span().split(torch.stack([low, 1e-20 * product(64, 300, 64)])) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_split(value: float) -> None:
    matrices = product(64, 300, 4)
    matrices[3, 5] = value
    assert Span().split(matrices) is None


def test_draws_nothing() -> None:
    state = torch.get_rng_state()
    first, second = (Span().split(product(64, 300, 4)) for _ in range(2))
    assert first is not None and second is not None
    assert all(map(torch.equal, first, second))
    assert torch.equal(state, torch.get_rng_state())
