"""Lags, their boxes and strips against the dense pair."""

from __future__ import annotations

from functools import reduce
from itertools import product
from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import conv_dims, examples
from tn_extensions.compiler.lags import LagDim, LagGrid, number_of_lags, segments
from tn_extensions.conv import ConvDim
from tn_extensions.network import Affine, Pair, Pattern
from tn_extensions.network.nodes import Progression

DIMS = st.booleans().flatmap(conv_dims)


def pair_of(dim: ConvDim) -> tuple[Pair, list[Progression], int]:
    """Make the pair of a dimension in KFAC-expand: ``[k, k', read, read']``."""
    read, shared = ("o", "i") if dim.transposed else ("i", "o")
    position = Affine((("o", dim.stride), ("k", dim.dilation)), -dim.padding[0])
    first = Pattern("i", position)
    sizes = {read: dim.input_size, shared: dim.output_size, "k": dim.kernel_size}
    second = first.rename(lambda j: j if j == shared else j + "p")
    pair = Pair(first, second, shared, dim.output_size)
    return pair, first.progressions(read, shared, sizes), dim.input_size


def dense_pair(dim: ConvDim) -> np.ndarray:
    """Compute the pair as an array ``[k, k', read, read']``."""
    pair, _, size = pair_of(dim)
    read = "o" if dim.transposed else "i"
    sizes = {"k": dim.kernel_size, "kp": dim.kernel_size, read: size, read + "p": size}
    order = [pair.indices.index(j) for j in ("k", "kp", read, read + "p")]
    return pair.dense(sizes).transpose(order)


def counts_of(grid: LagGrid, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Count pairs of flat positions of the padded operand, on the operand itself."""
    ends = [(d.size, *pad) for d, pad in zip(grid.dims, grid.padding, strict=True)]
    sizes = [sum(each) for each in ends]
    counts = np.zeros((prod(sizes), prod(sizes)))
    np.add.at(counts, (first, second), 1)
    inner = [slice(low, low + size) for size, low, _ in ends]
    return counts.reshape(*sizes, *sizes)[(*inner, *inner)]


def sums_of_boxes(grid: LagGrid) -> np.ndarray:
    """Return what is summed at each lag of each box, after zero."""
    space = [d.size for d in grid.dims]
    result = [np.zeros((*space, *space))]
    for box in grid.boxes:
        for lags in product(*(range(region.lags) for region in box)):
            lag = [r.lag + r.spacing * at for r, at in zip(box, lags, strict=True)]
            if next((one for one in lag if one), 0) < 0:
                continue
            counts = np.zeros((*space, *space))
            for own in product(*(region.own for region in box)):
                read = tuple(np.add(own, lag))
                if all(0 <= at < size for at, size in zip(read, space, strict=True)):
                    counts[(*own, *read)] += 1
            result.append(counts)
    return np.array(result)


@examples(100)
@given(st.lists(DIMS, min_size=1, max_size=2))
def test_boxes_and_strips_hold_all_terms_once(dims: list[ConvDim]) -> None:
    parts = [pair_of(dim) for dim in dims]
    grid = LagGrid([LagDim(tuple(values), size) for _, values, size in parts])
    sums = sums_of_boxes(grid)
    assert len(sums) == grid.number_of_sums
    windows = sums[np.concatenate([[0], grid.places])]
    assert len(windows) == grid.number_of_windows + 1
    strips = [grid.strip(number) for number in range(len(grid.sizes_of_strips))]
    assert [len(strip.first) for strip in strips] == grid.sizes_of_strips
    for row, added in enumerate(grid.additions, start=1):
        for number in np.flatnonzero(added):
            windows[row] += counts_of(grid, *strips[number])
    count = len(dims)
    mirrored = windows.transpose(
        0, *range(count + 1, 2 * count + 1), *range(1, count + 1)
    )
    rebuilt = np.concatenate([windows, mirrored])[grid.entries]
    # [k1, k2, ..., k1', ..., read1, ..., read1', ...]
    expected = reduce(np.multiply.outer, (dense_pair(dim) for dim in dims))
    order = [4 * axis + which for which in range(4) for axis in range(count)]
    assert np.array_equal(rebuilt, expected.transpose(order))


def usual_grid() -> LagGrid:
    """Make a layer of eight pixels a side, with padding that keeps their number."""
    _, progressions, size = pair_of(ConvDim(8, 3, 1, 1, (1, 1)))
    return LagGrid([LagDim(tuple(progressions), size)] * 2)


def test_one_box_and_its_strips() -> None:
    grid = usual_grid()
    (box,) = grid.boxes
    assert [(r.lag, r.lags) for r in box] == [(0, 3), (-2, 5)]
    assert [r.own for r in box] == [range(1, 7)] * 2
    # half of them: two pairs of positive lags, and three that are not negative
    assert number_of_lags(box) == 2 * 5 + 3
    # lags that lead further meet no partner
    assert grid.padding == [(0, 1), (1, 1)]
    # each dimension has three windows of lag zero, and one of each other lag
    assert grid.number_of_windows == 2 * 7 + 3 * (2 + 3)


def test_windows_are_cut_at_all_ends() -> None:
    assert segments([(0, 5), (2, 5), (2, 7)]) == [(0, 2), (2, 5), (5, 7)]
    assert segments([(0, 1), (3, 4), (3, 4)]) == [(0, 1), (3, 4)]
