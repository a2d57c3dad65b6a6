"""Correlate: all lags of several dimensions at once."""

from __future__ import annotations

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
from tn_extensions.compiler.primitives.correlate import correlate


@examples(60)
@given(convs(), BATCHES, st.sampled_from([LARGE, TINY]))
def test_expand(conv: Conv, batch_size: int, budget: int) -> None:
    network = quantities.kfac_expand(conv, batch_size)
    for count in range(1, conv.num_dims + 1):
        assert_all_evaluate(correlate, with_pairs(network, count), budget)


@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("options", USUAL)
def test_usual_layers(num_dims: int, transposed: bool, options: dict[str, Any]) -> None:
    conv = layer(num_dims, transposed=transposed, **options)
    network = with_pairs(quantities.kfac_expand(conv, 2))
    assert len(network.pairs) == num_dims
    for budget in (LARGE, TINY):
        assert assert_all_evaluate(correlate, network, budget) >= 1


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("padding", [1, ((0, 2), (2, 1))])
def test_channels_and_groups(groups: int, channels: int, padding: Any) -> None:
    conv = Conv.make(groups * channels, groups, 3, (7, 5), 1, padding, groups=groups)
    network = quantities.kfac_expand(conv, 3)
    for count in (1, 2):
        for budget in (LARGE, TINY):
            assert assert_all_evaluate(correlate, with_pairs(network, count), budget)


def test_matches_mirrored_networks_with_pairs() -> None:
    assert matched(correlate) == {"kfac_expand, paired"}


def test_estimate_grows_with_the_batch() -> None:
    costs = []
    for batch_size in (1, 8, 64):
        network = with_pairs(quantities.kfac_expand(layer(), batch_size))
        costs.append(min(w.cost.seconds for w in correlate(network, target())))
    assert costs == sorted(costs) and costs[0] < costs[-1]
