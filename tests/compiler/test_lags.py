"""Lag structures against the dense pair."""

from __future__ import annotations

from functools import reduce
from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import conv_dims, examples
from tn_extensions.compiler.lags import (
    LagGroup,
    Member,
    Segment,
    lag_classes,
    positive_lags,
)
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


@examples(80)
@given(DIMS)
def test_windows_of_lag_classes_hold_all_terms_once(dim: ConvDim) -> None:
    _, progressions, _ = pair_of(dim)
    rebuilt = np.zeros_like(dense_pair(dim))
    step = progressions[0].step
    for group in lag_classes(progressions):
        low, high = group.common
        for window in group.windows:
            assert window.begin <= max(low, high) and window.begin < window.end
            assert low >= window.begin and high <= window.end
            for u in range(window.begin, window.end):
                at = group.phase + step * u
                to = group.other + step * (u + group.shift)
                rebuilt[window.first, window.second, at, to] += 1
                if window.first != window.second:
                    rebuilt[window.second, window.first, to, at] += 1
    assert np.array_equal(rebuilt, dense_pair(dim))


@examples(80)
@given(st.lists(DIMS, min_size=1, max_size=2))
def test_positive_lags_and_their_mirror_images_hold_all_terms_once(
    dims: list[ConvDim],
) -> None:
    parts = [pair_of(dim) for dim in dims]
    expected = reduce(np.multiply.outer, (dense_pair(dim) for dim in dims))
    rebuilt = np.zeros_like(expected)
    choices = positive_lags([(values, size) for _, values, size in parts])
    for mirrored, groups in choices:
        for segments in product(*(group.segments for group in groups)):
            members = (segment.members for segment in segments)
            for chosen in product(*members):
                for partners in product(*(member.partners for member in chosen)):
                    add_terms(rebuilt, dims, groups, segments, chosen, partners)
                    if mirrored:
                        add_terms(
                            rebuilt, dims, groups, segments, chosen, partners, True
                        )
    assert np.array_equal(rebuilt, expected)


def add_terms(
    rebuilt: np.ndarray,
    dims: list[ConvDim],
    groups: tuple[LagGroup, ...],
    segments: tuple[Segment, ...],
    chosen: tuple[Member, ...],
    partners: tuple[Progression, ...],
    mirrored: bool = False,
) -> None:
    """Count the terms of a box for some members and their partners."""
    for box in product(*(segment.window for segment in segments)):
        where: tuple[int, ...] = ()
        for dim, group, u, member, partner in zip(
            dims, groups, box, chosen, partners, strict=True
        ):
            lag = partner.offset - member.value.offset
            assert lag % group.spacing == 0
            at = group.phase + group.step * u
            assert 0 <= at < dim.input_size
            if not 0 <= at + lag < dim.input_size:
                break
            free, read = (member.value.free, partner.free), (at, at + lag)
            where += (*free[::-1], *read[::-1]) if mirrored else (*free, *read)
        else:
            rebuilt[where] += 1
