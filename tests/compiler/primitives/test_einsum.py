"""Einsum: whatever there is."""

from __future__ import annotations

from hypothesis import given

from tests.compiler.candidates import OTHERS, assert_all_evaluate, matched, with_pairs
from tests.network.rules.identities import NETWORKS
from tests.network.test_network import chain
from tests.strategies import BATCHES, convs, examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.compiler.primitives.einsum import einsum
from tn_extensions.network import simplify


@examples(60)
@given(NETWORKS)
def test_any_network(network: TensorNetwork) -> None:
    assert assert_all_evaluate(einsum, network) == 1
    assert assert_all_evaluate(einsum, simplify(network)) == 1


@examples(30)
@given(convs(max_dims=2), BATCHES)
def test_pairs(conv: Conv, batch_size: int) -> None:
    network = quantities.kfac_expand(conv, batch_size)
    for count in range(1, conv.num_dims + 1):
        assert assert_all_evaluate(einsum, with_pairs(network, count)) == 1


def test_matches_everything() -> None:
    assert matched(einsum) == set(OTHERS)


def test_more_indices_than_letters() -> None:
    network, _ = chain(60)
    assert assert_all_evaluate(einsum, network) == 1
