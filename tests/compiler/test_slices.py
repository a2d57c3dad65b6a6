"""Slices along several axes equal plain indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import examples, noise_tensor
from tn_extensions.compiler.slices import find, place, select


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 4, 40, 40), (5, 3)], ids=str)
@given(st.data())
@examples(40)
def test_select(shape: tuple[int, ...], data: st.DataObject) -> None:
    tensor = noise_tensor(shape)
    if data.draw(st.booleans()):  # in other strides, as of channels-last
        tensor = tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    kept = [
        data.draw(st.none() | st.lists(st.integers(0, size - 1), max_size=5))
        for size in shape
    ]
    result = select(
        tensor, [None if k is None else torch.tensor(k).long() for k in kept]
    )
    whole = [list(range(size)) for size in shape]
    mesh = np.ix_(*[w if k is None else k for w, k in zip(whole, kept, strict=True)])
    mesh = tuple(axis.astype(int) for axis in mesh)
    assert np.array_equal(result.numpy(), tensor.numpy()[mesh])


@given(st.data())
@examples(40)
def test_place(data: st.DataObject) -> None:
    shape = (3, 2, 4, 5)
    kept = [
        data.draw(st.none() | st.sets(st.integers(0, size - 1), max_size=3))
        for size in shape
    ]
    positions = [None if k is None else torch.tensor(sorted(k)).long() for k in kept]
    sizes = [n if k is None else len(k) for n, k in zip(shape, kept, strict=True)]
    slices = noise_tensor(tuple(sizes))
    result = place(slices, positions, shape)
    assert result.shape == shape
    assert torch.equal(select(result, positions), slices)
    assert int((result != 0).sum()) == slices.numel()


def test_find() -> None:
    table = torch.tensor([[-1, 0], [2, 5]])
    kept = torch.tensor([0, 2])
    assert find(table, kept).tolist() == [[-1, 0], [1, -1]]
    assert find(table, kept[:0]).tolist() == [[-1, -1], [-1, -1]]
