"""Lags, their boxes and strips against the dense pair."""

from __future__ import annotations

from functools import reduce
from itertools import product
from math import prod
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import conv_dims, examples
from tn_extensions.compiler.lags import LagDim, LagGrid
from tn_extensions.conv import ConvDim
from tn_extensions.network import Affine, Pair, Pattern
from tn_extensions.network.nodes import Progression

DIMS = st.booleans().flatmap(conv_dims)


def pair_of(dim: ConvDim) -> tuple[Pair, list[Progression], int]:
    """Pair of a dimension as KFAC-expand has it: ``[k, k', read, read']``."""
    read, shared = ("o", "i") if dim.transposed else ("i", "o")
    position = Affine((("o", dim.stride), ("k", dim.dilation)), -dim.padding[0])
    first = Pattern("i", position)
    sizes = {read: dim.input_size, shared: dim.output_size, "k": dim.kernel_size}
    second = first.rename(lambda j: j if j == shared else j + "p")
    pair = Pair(first, second, shared, dim.output_size)
    return pair, first.progressions(read, shared, sizes), dim.input_size


def dense_pair(dim: ConvDim) -> np.ndarray:
    """The pair as an array ``[k, k', read, read']``."""
    pair, _, size = pair_of(dim)
    read = "o" if dim.transposed else "i"
    sizes = {"k": dim.kernel_size, "kp": dim.kernel_size, read: size, read + "p": size}
    order = [pair.indices.index(j) for j in ("k", "kp", read, read + "p")]
    return pair.dense(sizes).transpose(order)


def term(grid: LagGrid, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pairs of flat positions of the padded operand, counted on the operand itself."""
    sizes = [d.size + low + high for d, (low, high) in zip(grid.dims, grid.padding)]
    size = prod(sizes)
    counts = np.zeros((size, size))
    np.add.at(counts, (first, second), 1)
    inner = [slice(low, low + d.size) for d, (low, _) in zip(grid.dims, grid.padding)]
    return counts.reshape(*sizes, *sizes)[(*inner, *inner)]


def sums_of_boxes(grid: LagGrid) -> np.ndarray:
    """What is summed at each lag of each box, after zero."""
    space = [d.size for d in grid.dims]
    result = [np.zeros((*space, *space))]
    for box in grid.boxes:
        for lags in product(*(range(region.lags) for region in box)):
            counts = np.zeros((*space, *space))
            for own in product(*(region.own for region in box)):
                read = tuple(
                    at + region.lag + region.spacing * lag
                    for at, lag, region in zip(own, lags, box)
                )
                if all(0 <= at < size for at, size in zip(read, space)):
                    counts[(*own, *read)] += 1
            result.append(counts)
    return np.array(result)


@examples(100)
@given(st.lists(DIMS, min_size=1, max_size=2), st.booleans())
def test_boxes_and_strips_hold_all_terms_once(
    dims: list[ConvDim], merged: bool
) -> None:
    parts = [pair_of(dim) for dim in dims]
    grid = LagGrid([LagDim(tuple(v), size) for _, v, size in parts], merged)
    windows = sums_of_boxes(grid)[np.concatenate([[0], grid.places])]
    assert len(windows) == grid.number_of_windows + 1
    strips = [grid.strip(number) for number in range(len(grid.sizes_of_strips))]
    assert [len(strip.first) for strip in strips] == grid.sizes_of_strips
    for row, added in enumerate(grid.additions, start=1):
        for number in np.flatnonzero(added):
            windows[row] += term(grid, *strips[number])
    count = len(dims)
    mirrored = windows.transpose(
        0, *range(count + 1, 2 * count + 1), *range(1, count + 1)
    )
    rebuilt = np.concatenate([windows, mirrored])[grid.entries]
    # [k1, k2, ..., k1', ..., read1, ..., read1', ...]
    expected = reduce(np.multiply.outer, (dense_pair(dim) for dim in dims))
    order = [4 * axis + which for which in range(4) for axis in range(count)]
    assert np.array_equal(rebuilt, expected.transpose(order))


def grid_of(merged: bool, num_dims: int = 2, **change: Any) -> LagGrid:
    """A layer of eight pixels a side, with padding that keeps their number."""
    options = {"kernel_size": 3, "padding": (1, 1)} | change
    dim = ConvDim(8, **options)
    _, progressions, size = pair_of(dim)
    return LagGrid([LagDim(tuple(progressions), size)] * num_dims, merged)


def test_lags_apart_leave_few_strips() -> None:
    apart, merged = (grid_of(merged) for merged in (False, True))
    # lags that differ in both dimensions, in one of them, and zero
    lags = [tuple(r.lags for r in box) for box in apart.boxes]
    assert sorted(lags) == [(1, 1), (1, 2), (2, 1), (2, 5)]
    assert [tuple(r.lags for r in box) for box in merged.boxes] == [(3, 5)]
    # four edges and corners at lag zero, two edges at two lags along each dimension
    assert sorted(apart.sizes_of_strips) == [1] * 4 + [6] * 8 + [7] * 4
    assert sum(merged.sizes_of_strips) > sum(apart.sizes_of_strips)
    for grid in (apart, merged):
        # seven windows of each dimension, three of them at lag zero
        assert grid.number_of_windows == (7 * 7 + 9) / 2


def test_padding_covers_what_lags_read() -> None:
    assert grid_of(merged=True).padding == [(0, 1), (1, 1)]
    assert grid_of(merged=False).padding == [(0, 2), (2, 2)]
