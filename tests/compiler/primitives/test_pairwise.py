"""Pairwise: products of several operands, two at a time."""

from __future__ import annotations

from dataclasses import replace

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
from tn_extensions.compiler.candidate import Candidate, Target
from tn_extensions.compiler.primitives.pairwise import pairwise


@examples(25)
@given(
    convs(max_dims=2),
    BATCHES,
    st.sampled_from([LARGE, TINY]),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_rotated_gradients(
    conv: Conv, batch_size: int, budget: int, rank_a: int, rank_b: int
) -> None:
    network = quantities.rotated_grad(conv, batch_size, rank_a, rank_b)
    assert assert_all_evaluate(pairwise, network, budget)


@examples(25)
@given(
    convs(max_dims=2),
    BATCHES,
    st.sampled_from([LARGE, TINY]),
    st.integers(1, 3),
    st.sampled_from([None, 1, 2]),
)
def test_products_with_the_ggn(
    conv: Conv, batch_size: int, budget: int, num_vectors: int, number: int | None
) -> None:
    network = quantities.ggn_matvec(conv, batch_size, num_vectors, number)
    assert assert_all_evaluate(pairwise, network, budget)


def test_a_product_and_its_copy_are_evaluated_once() -> None:
    """Gradients, by which vectors are multiplied twice."""
    network = quantities.ggn_matvec(Conv.make(9, 8, 3, (7, 7)), 2, 1, 5)
    asked: list[list[str]] = []

    def planner(part: TensorNetwork, own: Target) -> Candidate:
        asked.append([operand.name for operand in part.operands])
        return target().best(part)

    assert list(pairwise(network, replace(target(), planner=planner)))
    at = asked.index(["g", "x"])
    assert asked[at + 1] == ["g x", "g x", "weight_dot"]


def test_each_order_is_a_candidate() -> None:
    """The input may meet the gradient first or its basis, or the gradient its own."""
    network = quantities.rotated_grad(Conv.make(9, 8, 3, (7, 7)), 2)
    asked: list[frozenset[str]] = []

    def planner(part: TensorNetwork, own: Target) -> Candidate:
        asked.append(frozenset(operand.name for operand in part.operands))
        return target().best(part)

    # small enough that gradients are not multiplied with the other side's basis
    assert list(pairwise(network, replace(target(2**20), planner=planner)))
    firsts = [*map(set, asked[::2])]
    assert firsts == [{"QA", "x"}, {"QB", "g"}, {"g", "x"}]


def test_products_without_a_sum_and_halves_are_left_alone() -> None:
    for network in OTHERS.values():
        assert not list(pairwise(network, target()))
    assert not list(pairwise(quantities.kfac_moments(layer(), 2), target()))
