"""Unfold: one operand read through its patterns."""

from __future__ import annotations

from hypothesis import given

from tests.compiler.candidates import assert_all_evaluate, layer, matched, target
from tests.strategies import BATCHES, convs, examples
from tn_extensions import Conv, quantities
from tn_extensions.compiler.primitives.unfold import unfold, unfolding
from tn_extensions.network import simplify


@examples(60)
@given(convs(), BATCHES)
def test_patches(conv: Conv, batch_size: int) -> None:
    network = quantities.unfold_input(conv, batch_size)
    assert assert_all_evaluate(unfold, network) == 1
    assert_all_evaluate(unfold, simplify(network))


def test_matches_a_single_operand_without_sums() -> None:
    assert matched(unfold) == {"unfold_input"}


def test_a_convolution_reads_a_view_of_its_padded_input() -> None:
    recipe = unfolding(quantities.unfold_input(layer(), 2))
    assert recipe is not None and recipe.is_view
    assert set(recipe.padding.values()) == {(1, 1)}
    assert recipe.padded_elements == 2 * 2 * 8 * 8


def test_cost_counts_the_padded_copy() -> None:
    (padded,) = unfold(quantities.unfold_input(layer(), 2), target())
    (plain,) = unfold(quantities.unfold_input(layer(padding=0), 2), target())
    assert padded.cost.peak == 2 * 2 * 8 * 8
    assert plain.cost.peak == 0
    assert len(padded.operations) == len(plain.operations) + 1
