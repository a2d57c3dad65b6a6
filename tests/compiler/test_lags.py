"""Lag structures against the dense pair."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import conv_dims, examples
from tn_extensions.compiler.lags import lag_classes
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
