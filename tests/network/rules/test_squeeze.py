"""Squeeze: indices of size one disappear."""

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
from tn_extensions.network.rules import squeeze


@examples(60)
@given(NETWORKS)
def test_value_is_kept(network: TensorNetwork) -> None:
    exhaust(squeeze, network)


@examples(40)
@given(FLAT_NETWORKS)
def test_cost_does_not_rise(network: TensorNetwork) -> None:
    assert_never_dearer(squeeze, network)


@examples(40)
@given(NETWORKS)
def test_only_hit_indices_of_size_one_stay(network: TensorNetwork) -> None:
    squeezed = exhaust(squeeze, network)
    hit = {pattern.index for pattern in squeezed.patterns}
    assert {j for j in squeezed.indices if squeezed.sizes[j] == 1} <= hit


def test_hit_index_is_a_condition_and_stays() -> None:
    # the second output reads padding only
    conv = Conv.make(1, 1, 1, 1, stride=2, padding=((0, 2),))
    network = exhaust(squeeze, quantities.unfold_input(conv, 3))
    assert set(network.indices) == {"n", "o1", "i1"}


def test_single_channel_and_group_disappear() -> None:
    network = quantities.kfac_expand(Conv.make(1, 1, 3, 5), 2)
    assert {"g", "ci", "cip"} <= set(network.indices)
    squeezed = exhaust(squeeze, network)
    assert not {"g", "ci", "cip"} & set(squeezed.indices)
    assert squeezed.output == ((), ("k1",), ("k1p",))


def test_nothing_to_squeeze() -> None:
    network = quantities.conv(Conv.make(4, 4, (2, 3), (5, 6), groups=2), 2)
    assert squeeze(network) is None
