"""Pixel: Gram matrices of patches by sums along the diagonals of that of pixels."""

from __future__ import annotations

import pytest
from hypothesis import given

from tests.compiler.candidates import (
    OTHERS,
    USUAL,
    assert_all_evaluate,
    layer,
    target,
    with_pairs,
)
from tests.strategies import BATCHES, convs, examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.compiler.half import Half
from tn_extensions.compiler.primitives.crossed import forms, gram_of_left
from tn_extensions.compiler.primitives.pixel import pixel

primitive = pixel


def patch_grams(conv: Conv, batch_size: int) -> list[TensorNetwork]:
    """Gram matrices of patches over positions, per sample and of all samples."""
    found = []
    for define in (quantities.per_sample_grad_norm, quantities.ggn_gram):
        network = define(conv, batch_size, 2)
        half = Half.of(network)
        assert half is not None
        for form in forms(half):
            if form.left.operand.name == "x" and form.left.dims:
                found.append(with_pairs(gram_of_left(half, form)))
                break
    return found


@examples(40)
@given(convs(max_dims=2), BATCHES)
def test_any_convolution(conv: Conv, batch_size: int) -> None:
    for network in patch_grams(conv, batch_size):
        assert_all_evaluate(primitive, network)


@pytest.mark.parametrize("options", USUAL, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("num_dims", [1, 2])
def test_usual_layers(options: dict[str, int], transposed: bool, num_dims: int) -> None:
    conv = layer(num_dims, transposed=transposed, **options)
    networks = patch_grams(conv, 2)
    assert networks
    assert sum(assert_all_evaluate(primitive, one) for one in networks) == len(networks)


def test_other_networks_are_left_alone() -> None:
    # lags over output positions have the same structure, but no pixels are gained
    for name, network in OTHERS.items():
        ways = list(primitive(network, target()))
        assert not ways or name == "kfac_expand, paired"
