"""Square roots in pieces: cut, added, coupled, given away."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.strategies import examples, noise_tensor
from tn_extensions import memory_budget
from tn_extensions.backpack.columns import Columns, column_per_sample
from tn_extensions.backpack.saved import SavedCopies

SHAPE = (2, 3)


def cut(whole: Tensor, sizes: list[int]) -> Columns:
    """Cut a square root into pieces of these sizes, and the rest."""
    return Columns(p for p in whole.tensor_split(sizes) if len(p))


@examples(50)
@given(st.integers(1, 6), st.data())
def test_sums_of_pieces_that_are_cut_differently(
    size: int, data: st.DataObject
) -> None:
    cuts = st.lists(st.integers(1, size), max_size=4).map(sorted)
    a, b = noise_tensor((size, *SHAPE)), 1 + noise_tensor((size, *SHAPE))
    left, right = cut(a, data.draw(cuts)), cut(b, data.draw(cuts))
    total = left + right
    assert len(total) == size
    assert_close(total.merged(), a + b)
    # the operands stay
    assert_close(left.merged(), a)
    assert_close(right.merged(), b)


def test_sum_of_which_one_is_coupled() -> None:
    a, b = noise_tensor((2, 3, 4)), noise_tensor((6, 3, 4))
    for total in (
        cut(a, [1]) + Columns([b], coupled=True),
        Columns([b], coupled=True) + cut(a, [1]),
    ):
        assert total.coupled
        assert_close(total.merged(), column_per_sample(a) + b)


def test_columns_per_sample() -> None:
    whole = noise_tensor((2, 3, 4))
    columns = cut(whole, [1]).per_sample()
    assert columns.coupled and columns.per_sample() is columns
    split = columns.merged().view(2, 3, 3, 4)
    for n in range(3):
        for m in range(3):
            wanted = whole[:, n] if n == m else torch.zeros(2, 4, dtype=whole.dtype)
            assert_close(split[:, n, m], wanted)


def test_pieces_are_forgotten_when_they_are_taken() -> None:
    pieces = [torch.zeros(1, 2) for _ in range(3)]
    alive = [weakref.ref(piece) for piece in pieces]
    columns = Columns(pieces)
    del pieces
    for i, piece in enumerate(columns.take()):
        assert piece is alive[i]()
        assert [ref() is None for ref in alive] == [j < i for j in range(3)]
        del piece
    assert columns.pieces == []


@pytest.mark.parametrize(("growth", "count"), [(0.5, 1), (1.0, 2), (2.0, 4), (9.0, 6)])
def test_cut_by_what_is_made_of_them(growth: float, count: int) -> None:
    whole = noise_tensor((6, *SHAPE))
    with memory_budget(4 * whole.numel() * 8 // 2):
        pieces = list(Columns([whole]).take(growth))
    assert len(pieces) == count
    assert_close(torch.cat(pieces), whole)


def test_alone_until_copied() -> None:
    columns = Columns([torch.zeros(1)])
    assert columns.is_alone
    twin = columns.copy()
    assert not columns.is_alone and not twin.is_alone
    del columns
    assert twin.is_alone


def test_alone_unless_memory_is_handed_on() -> None:
    columns = Columns([torch.ones(2, 3)])
    twin = columns.copy()
    handed_on = columns.through(lambda c: (piece.view(2, 3, 1) for piece in c.take()))
    del columns
    assert not handed_on.is_alone  # the twin has the same memory
    fresh = handed_on.copy().through(lambda c: (2 * piece for piece in c.take()))
    assert fresh.is_alone
    del twin
    assert handed_on.is_alone
    same = handed_on.through(lambda c: (piece.mul_(2) for piece in c.take()))
    del handed_on
    assert same.is_alone


def test_saved_for_two_inputs() -> None:
    """Each input has a copy; only the last one left may be overwritten."""
    saved = SavedCopies()
    columns = Columns([torch.ones(1)])
    for key in (1, 2):
        saved.save_quantity(key, columns, lambda a, b: a + b)
    saved.save_quantity(1, columns, lambda a, b: a + b)
    del columns
    first = saved.retrieve_quantity(1, delete_old=True)
    assert first.merged().item() == 2 and first.is_alone
    kept = saved.retrieve_quantity(2, delete_old=False)
    assert not kept.is_alone
    list(kept.take())
    again = saved.retrieve_quantity(2, delete_old=True)
    assert again.merged().item() == 1
    assert saved.retrieve_quantity(2, delete_old=True) is None
