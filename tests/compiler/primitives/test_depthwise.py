"""Depthwise: all lags of each channel at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compiler.candidates import (
    LARGE,
    TINY,
    USUAL,
    assert_all_evaluate,
    layer,
    matched,
    target,
    with_pairs,
)
from tests.strategies import BATCHES, convs, examples
from tn_extensions import Conv, quantities
from tn_extensions.compiler.primitives.depthwise import depthwise


@examples(60)
@given(convs(), BATCHES, st.integers(1, 3), st.sampled_from([LARGE, TINY]))
def test_expand(conv: Conv, batch_size: int, groups: int, budget: int) -> None:
    conv = replace(conv, in_channels=groups, out_channels=groups, groups=groups)
    network = quantities.kfac_expand(conv, batch_size)
    assert_all_evaluate(depthwise, with_pairs(network), budget)


@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("options", [*USUAL, {"kernel_size": 4, "padding": ((1, 2),)}])
def test_usual_layers(
    num_dims: int, transposed: bool, groups: int, options: dict[str, Any]
) -> None:
    padding = options.get("padding", 1)
    if isinstance(padding, tuple):
        options = options | {"padding": padding * num_dims}
    conv = layer(num_dims, transposed=transposed, **options)
    conv = replace(conv, in_channels=groups, out_channels=groups, groups=groups)
    network = with_pairs(quantities.kfac_expand(conv, 2))
    assert len(network.pairs) == num_dims
    for budget in (LARGE, TINY):
        assert assert_all_evaluate(depthwise, network, budget) == 1


def test_long_sums_are_cut() -> None:
    conv = Conv.make(2, 2, 3, (40, 60), padding=1, groups=2)
    network = with_pairs(quantities.kfac_expand(conv, 2))
    assert assert_all_evaluate(depthwise, network) == 1


def test_needs_one_channel_per_group() -> None:
    assert matched(depthwise) == set()
    conv = Conv.make(4, 4, 3, (6, 6), padding=1, groups=2)
    network = with_pairs(quantities.kfac_expand(conv, 2))
    assert not list(depthwise(network, target()))


def test_estimate_grows_with_the_batch() -> None:
    costs = []
    for batch_size in (1, 8, 64):
        conv = Conv.make(4, 4, 3, (6, 6), padding=1, groups=4)
        network = with_pairs(quantities.kfac_expand(conv, batch_size))
        (way,) = depthwise(network, target())
        costs.append(way.cost.seconds)
    assert costs == sorted(costs) and costs[0] < costs[-1]
