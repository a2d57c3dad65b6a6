"""Self-Gram: a half multiplied with itself, or squared, in blocks and tiles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.compiler.candidates import (
    LARGE,
    OTHERS,
    TINY,
    assert_all_evaluate,
    layer,
    matched,
    target,
)
from tests.strategies import BATCHES, convs, examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.primitives.gram import gram
from tn_extensions.network import simplify


def squared(conv: Conv, batch_size: int) -> dict[str, TensorNetwork]:
    """Networks whose halves share what the result keeps."""
    return {
        "norm": quantities.per_sample_grad_norm(conv, batch_size, 2),
        "norm of one": quantities.per_sample_grad_norm(conv, batch_size),
        "diagonal": quantities.ggn_diagonal(conv, batch_size, 3),
        "diagonals": quantities.ggn_diagonal(conv, batch_size, 3, per_sample=True),
    }


@examples(40)
@given(convs(), BATCHES, st.sampled_from([LARGE, TINY]))
def test_factors(conv: Conv, batch_size: int, budget: int) -> None:
    for quantity in (quantities.kfac_expand, quantities.kfac_reduce):
        network = quantity(conv, batch_size)
        assert assert_all_evaluate(gram, network, budget) >= 1
        assert_all_evaluate(gram, simplify(network), budget)


def test_matches_mirrored_networks_without_pairs() -> None:
    assert matched(gram) == {"kfac_expand", "kfac_reduce"}


@pytest.mark.parametrize("channels", [255, 512, 700])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("budget", [LARGE, TINY])
def test_triangle_of_several_tiles(
    channels: int, groups: int, batch_size: int, budget: int
) -> None:
    conv = Conv.make(groups * channels, groups, 1, 3, groups=groups)
    network = simplify(quantities.kfac_expand(conv, batch_size))
    x = torch.randn(batch_size, groups * channels, 3).double()
    split = x.view(batch_size, groups, channels, 3)
    expected = torch.einsum("ngai,ngbi->gab", split, split)
    # content that is not symmetric stays so
    before = torch.randn(groups, channels, channels).double()
    for candidate in gram(network, target(budget)):
        fresh = torch.full_like(before, torch.nan)
        candidate.run({"x": x}, Accumulator(fresh, 0.5, fresh=True))
        assert_close(fresh, 0.5 * expected)
        added = before.clone()
        candidate.run({"x": x}, Accumulator(added, 0.5, fresh=False))
        assert_close(added, before + 0.5 * expected)


def test_chunks_respect_the_budget() -> None:
    network = OTHERS["kfac_expand"].replace()
    conv = layer(input_size=(12, 12))
    network = simplify(quantities.kfac_expand(conv, 16))
    one = min(candidate.cost.peak for candidate in gram(network, target(TINY)))
    for count in (1, 3, 16):
        budget = 2 * 8 * one * count
        fitting = list(gram(network, target(budget)))
        assert all(8 * way.cost.peak <= budget for way in fitting)
    assert max(way.cost.peak for way in gram(network, target(LARGE))) > one


@examples(15)
@given(convs(max_dims=2), BATCHES, st.sampled_from([LARGE, TINY]))
def test_halves_of_four_operands(conv: Conv, batch_size: int, budget: int) -> None:
    network = quantities.kfac_moments(conv, batch_size, 2, 1)
    assert assert_all_evaluate(gram, network, budget)


@examples(25)
@given(convs(max_dims=2), BATCHES, st.sampled_from([LARGE, TINY]), st.booleans())
def test_norms_and_diagonals(
    conv: Conv, batch_size: int, budget: int, simplified: bool
) -> None:
    for network in squared(conv, batch_size).values():
        if simplified:  # possibly to two operands without indices
            assert_all_evaluate(gram, simplify(network), budget)
        else:
            assert assert_all_evaluate(gram, network, budget) >= 1


@pytest.mark.parametrize("name", [*squared(layer(), 2), "gram"])
def test_blocks_are_cut(name: str) -> None:
    conv = Conv.make(64, 96, 3, (4, 4), padding=1)
    network = {**squared(conv, 40), "gram": quantities.ggn_gram(conv, 4, 3)}[name]
    few = list(gram(network, target(2**19)))
    many = list(gram(network, target()))
    assert min(way.peak for way in few) < 2**16 < min(way.peak for way in many)


def test_candidates_differ_in_their_labels() -> None:
    conv = Conv.make(64, 64, 3, (12, 12), padding=1)
    for network in (quantities.kfac_expand(conv, 8), *squared(conv, 8).values()):
        labels = [way.label for way in gram(network, target())]
        assert len(set(labels)) == len(labels) > 2
