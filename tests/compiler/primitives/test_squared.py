"""Squared operands: what occurs twice is squared, and the rest is convolved."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.compiler.candidates import (
    LARGE,
    OTHERS,
    TINY,
    assert_all_evaluate,
    layer,
    matched,
)
from tests.strategies import BATCHES, convs, examples
from tn_extensions import Conv, quantities
from tn_extensions.compiler import plan
from tn_extensions.compiler.primitives.squared import squared


@examples(25)
@given(convs(), BATCHES, st.sampled_from([LARGE, TINY]))
def test_squared_kernels(conv: Conv, batch_size: int, budget: int) -> None:
    network = quantities.diagonal_backward(conv, batch_size)
    assert assert_all_evaluate(squared, network, budget) == 1


def test_torch_convolves_with_the_square() -> None:
    chosen = plan(quantities.diagonal_backward(layer(), 2))
    assert chosen.candidate.name == "squared weight, native transposed convolution"


def test_matches_nothing_else() -> None:
    assert OTHERS and not matched(squared)
