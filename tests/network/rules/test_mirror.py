"""Mirror: symmetric networks are recognised, and are symmetric."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from numpy.testing import assert_allclose

from tests.network.rules.identities import FLAT_NETWORKS, arrays_of, optimal_flops
from tests.reference import dense
from tests.strategies import BATCHES, convs, examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.network import simplify
from tn_extensions.network.rules import is_mirrored, mirror, pair, pairable


@examples(60)
@given(FLAT_NETWORKS)
def test_mirror_is_an_involution_of_the_same_cost(network: TensorNetwork) -> None:
    image = mirror(network)
    assert mirror(image) == network
    assert optimal_flops(image) == optimal_flops(network)
    assert image.shape == tuple(network.shape)
    arrays = arrays_of(network)
    expected = dense.evaluate(network, arrays)
    assert_allclose(dense.evaluate(image, arrays), expected, atol=1e-10)


@examples(40)
@given(convs(), BATCHES)
def test_factors_are_mirrored_however_they_are_rewritten(
    conv: Conv, batch_size: int
) -> None:
    for quantity in (quantities.kfac_expand, quantities.kfac_reduce):
        network = quantity(conv, batch_size)
        assert is_mirrored(network)
        simplified = simplify(network)
        copies = [op for op in simplified.operands if op.indices]
        assert is_mirrored(simplified) or len(set(copies)) < 2
        for index in pairable(simplified):
            paired = pair(simplified, index)
            assert paired is not None and is_mirrored(paired)
        factor = dense.evaluate(network, arrays_of(network))
        assert_allclose(factor, factor.swapaxes(1, 2), atol=1e-10)


@examples(30)
@given(convs(), BATCHES)
def test_networks_without_copies_are_not_mirrored(conv: Conv, batch_size: int) -> None:
    for quantity in (quantities.conv, quantities.unfold_input, quantities.patch_sum):
        assert not is_mirrored(quantity(conv, batch_size))


def test_a_product_of_different_things_is_not_mirrored() -> None:
    network = quantities.kfac_expand(Conv.make(1, 1, 3, 5), 2)
    (first, _) = network.operands
    other = network.replace([first], [type(first)("y", first.axes)])
    assert not is_mirrored(other)
    arrays = arrays_of(other)
    result = dense.evaluate(other, arrays | {"y": np.ones(first.shape)})
    assert not np.allclose(result, result.swapaxes(1, 2))


def test_a_one_sided_output_is_not_mirrored() -> None:
    network = quantities.kfac_expand(Conv.make(2, 1, 3, 5), 2)
    assert not is_mirrored(network.replace(output=[["g"], ["ci", "k1"], ["cip"]]))
