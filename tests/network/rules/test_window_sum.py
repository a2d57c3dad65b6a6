"""Window sum: terms that nothing else carries are summed in the pattern."""

from __future__ import annotations

from hypothesis import given

from tests.network.rules.identities import (
    FLAT_NETWORKS,
    NETWORKS,
    assert_never_dearer,
    exhaust,
)
from tests.strategies import examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.network.rules import window_sum


@examples(60)
@given(NETWORKS)
def test_value_is_kept(network: TensorNetwork) -> None:
    exhaust(window_sum, network)


@examples(40)
@given(FLAT_NETWORKS)
def test_cost_does_not_rise(network: TensorNetwork) -> None:
    assert_never_dearer(window_sum, network)


def test_reduce_loses_its_output_indices() -> None:
    network = quantities.kfac_reduce(Conv.make(2, 2, (3, 2), (5, 6), padding=1), 2)
    summed = exhaust(window_sum, network)
    assert not any(index.startswith("o") for index in summed.indices)
    sizes = {pattern.summed for pattern in summed.patterns}
    assert sizes == {((1, 5),), ((1, 7),)}


def test_kernel_sum_is_the_same_rule() -> None:
    network = quantities.unfold_input(Conv.make(2, 2, 3, 5, dilation=2), 2)
    total = network.replace(output=[["n"], ["g", "ci"], ["o1"]])
    (pattern,) = exhaust(window_sum, total).patterns
    assert pattern.summed == ((2, 3),)
    assert pattern.indices == ("i1", "o1")


def test_indices_that_are_shared_or_kept_are_not_summed() -> None:
    conv = Conv.make(2, 2, 3, 5)
    assert window_sum(quantities.kfac_expand(conv, 2)) is None
    assert window_sum(quantities.unfold_input(conv, 2)) is None
    assert window_sum(quantities.conv(conv, 2)) is None
