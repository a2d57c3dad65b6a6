"""Squares: halves that are squared and summed, in chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compiler.candidates import (
    LARGE,
    OTHERS,
    TINY,
    assert_all_evaluate,
    layer,
    target,
)
from tests.strategies import BATCHES, convs, examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.compiler.primitives.squares import half_of, squares
from tn_extensions.network import simplify

primitive = squares


def squared(conv: Conv, batch_size: int) -> dict[str, TensorNetwork]:
    """Networks whose halves share what the result carries."""
    return {
        "norm": quantities.per_sample_grad_norm(conv, batch_size, 2),
        "norm of one": quantities.per_sample_grad_norm(conv, batch_size),
        "diagonal": quantities.ggn_diagonal(conv, batch_size, 3),
        "diagonals": quantities.ggn_diagonal(conv, batch_size, 3, per_sample=True),
    }


@examples(15)
@given(convs(max_dims=2), BATCHES, st.sampled_from([LARGE, TINY]))
def test_halves_of_four_operands(conv: Conv, batch_size: int, budget: int) -> None:
    network = quantities.kfac_moments(conv, batch_size, 2, 1)
    assert assert_all_evaluate(primitive, network, budget)


@examples(25)
@given(convs(max_dims=2), BATCHES, st.sampled_from([LARGE, TINY]), st.booleans())
def test_norms_and_diagonals(
    conv: Conv, batch_size: int, budget: int, simplified: bool
) -> None:
    for network in squared(conv, batch_size).values():
        if simplified:  # possibly to two operands without indices
            assert_all_evaluate(primitive, simplify(network), budget)
        else:
            assert assert_all_evaluate(primitive, network, budget) >= 2


@pytest.mark.parametrize("name", squared(layer(), 2))
def test_half(name: str) -> None:
    network = squared(layer(groups=2), 3)[name]
    half = half_of(network)
    assert half is not None
    assert set(half.output_indices) - {"v"} == {"n", "g", "ci", "co", "k1", "k2"}
    assert [len(axis) for axis in half.output] == [1] * len(half.output)


@pytest.mark.parametrize("name", squared(layer(), 2))
def test_blocks_are_cut_and_patterns_read_once(name: str) -> None:
    conv = Conv.make(64, 96, 3, (4, 4), padding=1)
    ways = list(primitive(squared(conv, 40)[name], target(2**16)))
    for way in ways:
        assert way.cost.peak < 2**16


def test_other_networks_are_left_alone() -> None:
    for network in OTHERS.values():
        assert not list(primitive(network, target()))
    assert not list(primitive(quantities.ggn_gram(layer(), 2, 2), target()))
