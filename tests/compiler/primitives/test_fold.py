"""Fold: slices of an operand are added up where they overlap."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from tests.compiler.candidates import (
    USUAL,
    assert_all_evaluate,
    layer,
    matched,
    target,
)
from tests.strategies import BATCHES, convs, examples
from tn_extensions import Conv, quantities
from tn_extensions.compiler import plan
from tn_extensions.compiler.candidate import MOST_CALLS
from tn_extensions.compiler.primitives.fold import fold, fold_natively
from tn_extensions.network import Pattern, build, simplify


@examples(60)
@given(convs(max_dims=4), BATCHES)
def test_patches(conv: Conv, batch_size: int) -> None:
    network = quantities.fold_output(conv, batch_size)
    assert assert_all_evaluate(fold, network) == 1
    assert_all_evaluate(fold, simplify(network))


@examples(60)
@given(convs(max_dims=3), BATCHES)
def test_torch_folds_one_dimension_or_two(conv: Conv, batch_size: int) -> None:
    network = quantities.fold_output(conv, batch_size)
    known = not conv.transposed and conv.num_dims < 3
    assert assert_all_evaluate(fold_natively, network) == known


@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("options", USUAL)
def test_usual_layers(options: dict[str, Any], num_dims: int) -> None:
    conv = layer(num_dims, **options)
    assert assert_all_evaluate(fold, simplify(quantities.fold_output(conv, 2))) == 1


def test_matches_sums_of_a_single_operand() -> None:
    assert matched(fold) == matched(fold_natively) == {"fold_output"}


@pytest.mark.parametrize("start", [-2, 0, 3])
@pytest.mark.parametrize("output", ["jn", "nj"])
def test_other_networks_of_the_form(output: str, start: int) -> None:
    sizes = {"n": 3, "i": 4, "k": 2, "j": 9}
    place = Pattern.of("j", {"i": 2, "k": 1}, start)
    network = build({"a": ["i", "n", "k"]}, output, sizes, [place])
    assert assert_all_evaluate(fold, network) == 1
    assert assert_all_evaluate(fold_natively, network) == 0
    ordered = build({"a": ["n", "k", "i"]}, output, sizes, [place])
    assert assert_all_evaluate(fold_natively, ordered) == (output == "nj")


def test_what_sums_otherwise_is_another_network() -> None:
    sizes = {"n": 3, "i": 4, "k": 2, "j": 9}
    place = Pattern.of("j", {"i": 2, "k": 1})
    kept = build({"a": ["n", "k", "i"]}, "nkj", sizes, [place])
    summed = build({"a": ["n", "k", "i"]}, "j", sizes, [place], summed="n")
    for network in (kept, summed):
        assert not [*fold(network, target()), *fold_natively(network, target())]


def test_adds_as_often_as_the_smaller_index_says() -> None:
    (short,) = fold(quantities.fold_output(layer(1, kernel_size=2), 2), target())
    assert short.operations[-1].times == 2
    wide = quantities.fold_output(layer(1, kernel_size=5, padding=0), 2)
    (few,) = fold(wide, target())
    assert few.operations[-1].times == 2
    many = quantities.fold_output(Conv.make(1, 1, 2 * MOST_CALLS, 5 * MOST_CALLS), 2)
    assert not list(fold(many, target()))


def test_large_patches_are_added_and_small_ones_left_to_torch() -> None:
    large, small = (
        plan(quantities.fold_output(Conv.make(c, c, 3, (n, n), padding=1), 4))
        for c, n in ((64, 56), (2, 8))
    )
    assert large.candidate.name == "fold"
    assert small.candidate.name == "native fold"
    assert large.cost.peak == small.cost.peak == 0


def test_many_channels_of_short_rows_are_left_to_torch() -> None:
    short, strided = (
        plan(quantities.fold_output(Conv.make(c, c, 3, (n, n), stride, 1), 8))
        for c, n, stride in ((512, 7, 1), (64, 56, 2))
    )
    assert short.candidate.name == strided.candidate.name == "native fold"


@pytest.mark.parametrize("options", USUAL)
def test_long_kernels_are_folded_a_dimension_at_a_time(options: dict[str, Any]) -> None:
    conv = layer(2, **({"kernel_size": 6, "input_size": (16, 15)} | options))
    (found,) = fold(quantities.fold_output(conv, 2), target())
    assert sum(op.times for op in found.operations) < 25
    assert assert_all_evaluate(fold, quantities.fold_output(conv, 2)) == 1
