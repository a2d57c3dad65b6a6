"""Pair: two patterns that share a summed index become one node."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.network.rules.identities import (
    NETWORKS,
    assert_same_value,
    exhaust,
    optimal_flops,
)
from tests.strategies import BATCHES, convs, examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.network import simplify
from tn_extensions.network.index import prime
from tn_extensions.network.rules import pair, pairable


@examples(40)
@given(NETWORKS)
def test_value_is_kept(network: TensorNetwork) -> None:
    exhaust(pair, network)
    simplified = simplify(network)
    assert_same_value(network, exhaust(pair, simplified))


@examples(40)
@given(convs(max_dims=2), BATCHES)
def test_the_best_way_stays_as_cheap_once_the_pair_is_made(
    conv: Conv, batch_size: int
) -> None:
    """Contracting the two patterns first is one of the old network's ways."""
    network = quantities.kfac_expand(conv, batch_size)
    paired = pair(network)
    assert paired is not None
    (joined,) = paired.pairs
    product = TensorNetwork(
        (joined.first, joined.second),
        [[index] for index in joined.indices],
        {**network.sizes},
    )
    assert optimal_flops(network) <= optimal_flops(paired) + optimal_flops(product)


def shared_over(index: str, conv: Conv) -> TensorNetwork:
    """Two copies of the unfolded input's pattern that share an index."""
    half = quantities.unfold_input(conv, 2)
    copy = half.relabel(lambda j: j if j == index else prime(j))
    kept = [[j] for j in (*half.output_indices, *copy.output_indices) if j != index]
    return half.multiply(copy, list(dict.fromkeys(map(tuple, kept))))


@examples(40)
@given(convs(max_dims=2), st.data())
def test_pairs_over_outputs_and_kernel_entries(conv: Conv, data: st.DataObject) -> None:
    ends = ["k1", "o1", "i1"]
    ends.remove("o1" if conv.transposed else "i1")
    index = data.draw(st.sampled_from(ends))
    network = shared_over(index, conv)
    if index not in pairable(network):
        assert network.sizes[index] >= 1
        return
    paired = pair(network, index)
    assert paired is not None
    assert index not in paired.indices
    assert len(paired.pairs) == 1
    assert_same_value(network, paired)


def test_expand_pairs_each_dimension() -> None:
    network = quantities.kfac_expand(Conv.make(2, 2, (3, 3), (6, 6)), 2)
    assert set(pairable(network)) == {"o1", "o2"}
    paired = pair(network, "o2")
    assert paired is not None and pairable(paired) == ("o1",)
    assert pair(paired, "o2") is None


@pytest.mark.parametrize("shared", [None, "k1"])
def test_nothing_to_pair(shared: str | None) -> None:
    network = quantities.conv(Conv.make(2, 2, 3, 6), 2)
    assert pairable(network) == ()
    assert pair(network, shared) is None


def test_equal_patterns_are_no_pair() -> None:
    network = quantities.patch_sum(Conv.make(1, 1, 3, 5), 1)
    (pattern,) = network.patterns
    assert pairable(network.replace(added=[pattern])) == ()
