"""Boxes of positions and their lags against the dense pairs."""

from __future__ import annotations

from functools import reduce
from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.compiler.test_lags import DIMS, dense_pair, pair_of
from tests.strategies import examples
from tn_extensions.compiler.boxes import BoxGrid, number_of_sums, padding
from tn_extensions.compiler.lags import positive_lags
from tn_extensions.conv import ConvDim


@examples(100)
@given(st.lists(DIMS, min_size=1, max_size=2), st.booleans())
def test_boxes_and_their_mirror_images_hold_all_terms_once(
    dims: list[ConvDim], split: bool
) -> None:
    parts = [pair_of(dim) for dim in dims]
    expected = reduce(np.multiply.outer, (dense_pair(dim) for dim in dims))
    rebuilt = np.zeros_like(expected)
    for groups in positive_lags([(values, size) for _, values, size in parts], split):
        grid = BoxGrid(groups)
        for key, box in grid.boxes.items():
            found = [segs[at] for segs, at in zip(grid.segments, key, strict=True)]
            for members in product(*(segment.members for segment in found)):
                for pair in grid.pairs(members):
                    lags = [
                        region.lag + region.spacing * (region.within(member).start + at)
                        for region, member, at in zip(
                            box, members, pair.lag, strict=True
                        )
                    ]
                    for own in product(*(region.own for region in box)):
                        read = [at + lag for at, lag in zip(own, lags, strict=True)]
                        if all(
                            0 <= at < dim.input_size
                            for at, dim in zip(read, dims, strict=True)
                        ):
                            ends = pair.row, pair.column, own, read
                            rebuilt[interleaved(*ends)] += 1
                            if pair.mirrored:
                                ends = pair.column, pair.row, read, own
                                rebuilt[interleaved(*ends)] += 1
    assert np.array_equal(rebuilt, expected)


def interleaved(*ends: tuple[int, ...] | list[int] | range) -> tuple[int, ...]:
    """Indices ``k, k', read, read'`` of one dimension after the other."""
    return tuple(at for dim in zip(*ends, strict=True) for at in dim)


def grids(kernel_size: int, split: bool) -> list[BoxGrid]:
    """Boxes of two dimensions of eight pixels, with padding that keeps their size."""
    pad = kernel_size // 2
    dim = ConvDim(8, kernel_size, 1, 1, (pad, pad))
    _, progressions, size = pair_of(dim)
    return [BoxGrid(g) for g in positive_lags([(progressions, size)] * 2, split)]


def test_lags_apart_pay_for_small_kernels_only() -> None:
    # one box of 2 x 5 lags, 3 each of 2 and 2, and 9 of lag zero
    assert number_of_sums(grids(3, split=True)) == 10 + 6 + 6 + 9
    # 3, 3 and 2 lags in the segments of one dimension, 4, 5 and 4 in the other
    assert number_of_sums(grids(3, split=False)) == 8 * 13
    for size in (5, 7):
        counts = [
            len([b for g in grids(size, split) for b in g.boxes])
            for split in (True, False)
        ]
        assert counts[0] > counts[1]


def test_padding_covers_what_lags_read() -> None:
    (grid,) = grids(3, split=False)
    assert padding(grid.regions[0], 8) == (0, 1)
    # lags that lead further meet no partner
    assert padding(grid.regions[1], 8) == (1, 1)
