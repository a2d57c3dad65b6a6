"""Sums over kept positions equal their definition, on all convolutions."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.sampling.estimates import (
    estimate,
    estimates,
    narrowed_or_whole,
    operands,
)
from tests.strategies import examples
from tn_extensions import Conv, quantities
from tn_extensions.sampling import Sampled, sample, sites, unfolded
from tn_extensions.sampling.sites import cheapest
from tn_extensions.sampling.sites import sites as sites_of


@given(estimates(), st.booleans(), st.sampled_from([1, 30, 2**20]))
@examples(250)
def test_each_way_equals_definition(
    case: tuple[Sampled, dict[str, Tensor]], narrowed: bool, piece: int
) -> None:
    sampled, tensors = case
    expected = estimate(sampled.original, sampled.draws, tensors)
    given_tensors, names = narrowed_or_whole(sampled, tensors, narrowed)
    ways = [sites_of(sampled.original, o.name) for o in sampled.original.operands]
    for way in [None, *ways]:
        with (
            patch.object(unfolded, "PIECE", piece),
            patch("tn_extensions.sampling.sampled.cheapest", return_value=way),
        ):
            result = sampled.run(given_tensors, names)
        assert torch.allclose(result, expected, rtol=1e-10, atol=1e-10)


CONV = Conv.make(64, 64, 3, (56, 56), padding=1)


def way(conv: Conv, batch_size: int, **counts: int) -> str | None:
    """Name of the operand whose positions are kept, of what is chosen."""
    network = quantities.weight_vjp(conv, batch_size)
    found = cheapest(network, tuple(counts.items()), torch.float32, "cpu")
    return None if found is None else found.kept


def test_which_way_is_chosen() -> None:
    assert way(CONV, 8, i1=28, i2=28) == "x"
    assert way(CONV, 8, n=4, o1=14, o2=28) == "g"
    assert way(CONV, 8, n=4) is None
    assert way(CONV, 8, i1=55) is None  # as much work as all of them
    depthwise = Conv.make(96, 96, 3, (56, 56), padding=1, groups=96)
    assert way(depthwise, 8, i1=28, i2=28) is None


@pytest.mark.parametrize("name", ["kfac_expand", "ggn_diagonal"])
def test_two_copies_are_summed_otherwise(name: str) -> None:
    arguments = {"ggn_diagonal": (2,)}.get(name, ())
    network = getattr(quantities, name)(CONV, 2, *arguments)
    assert all(sites_of(network, o.name) is None for o in network.operands)


def test_estimates_cost_their_share() -> None:
    network = quantities.weight_vjp(CONV, 8)
    found = sites_of(network, "x")
    assert found is not None

    def flops(**counts: int) -> float:
        return found.cost(network.sizes, counts, sites.rates("cpu"), 4).flops

    assert flops(i1=28, i2=28) == pytest.approx(flops() / 4, rel=0.05)
    assert flops(i1=28, n=4, ci=16) == pytest.approx(flops() / 16, rel=0.05)


def test_is_differentiated_with_zeros_instead() -> None:
    """The products write into memory, which cannot be differentiated."""
    conv = Conv.make(16, 16, 3, (20, 20), padding=1)
    network = quantities.weight_vjp(conv, 2)
    tensors = operands(network)
    sampled = sample(network, {"i1": 0.3, "i2": 0.3}, sampler="fixed")
    expected = sampled.run(tensors)
    g = tensors["g"].requires_grad_()
    result = sampled.run(tensors)
    assert torch.allclose(result, expected)
    (gradient,) = torch.autograd.grad(result.square().sum(), g)
    assert gradient.any()


def test_pieces_in_half_precision_are_summed_in_single() -> None:
    conv = Conv.make(2, 3, 3, (24, 24), padding=1)
    network = quantities.weight_vjp(conv, 8)
    tensors = {name: own.abs() for name, own in operands(network).items()}
    sampled = sample(network, {"i1": 0.5, "i2": 0.5}, sampler="fixed")
    expected = sampled.run(tensors)
    half = {name: own.half() for name, own in tensors.items()}
    found = sites_of(network, "x")
    with (
        patch.object(unfolded, "PIECE", 1),
        patch("tn_extensions.sampling.sampled.cheapest", return_value=found),
    ):
        result = sampled.run(half)
    assert result.dtype == torch.float16
    # summed in half precision, terms of one would be lost beyond 2048
    assert torch.allclose(result.double(), expected, rtol=2e-3)
