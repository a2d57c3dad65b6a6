"""Window sums: rows common to all windows, then borders, or window matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch.testing import assert_close

from tests.compiler.candidates import assert_all_evaluate, layer, matched, target
from tests.network.rules.identities import arrays_of
from tests.reference import dense
from tests.strategies import BATCHES, convs, examples, noise_tensor
from tn_extensions import Conv, quantities
from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.primitives.window import window
from tn_extensions.network import simplify


@examples(60)
@given(convs(), BATCHES)
def test_sums_of_patches(conv: Conv, batch_size: int) -> None:
    for quantity in (quantities.patch_sum, quantities.patch_total):
        network = simplify(quantity(conv, batch_size))
        assert_all_evaluate(window, network)


def test_matches_summed_patterns_of_one_operand() -> None:
    assert matched(window) == {"patch_sum"}


@pytest.mark.parametrize("size", [9, 33, 40])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 3}])
def test_maps_on_both_sides_of_the_kronecker_limit(
    size: int, options: dict[str, int]
) -> None:
    conv = layer(input_size=(size, size), **options)
    network = simplify(quantities.patch_sum(conv, 2))
    assert assert_all_evaluate(window, network) >= 2


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}])
def test_a_heavy_border_does_not_cancel(options: dict[str, int]) -> None:
    conv = layer(input_size=(40, 40), padding=1, **options)
    network = simplify(quantities.patch_sum(conv, 2))
    x = noise_tensor((2, 2, 40, 40)) * 1e4
    x[..., 1:-1, 1:-1] /= 1e4
    expected = torch.from_numpy(dense.evaluate(network, {"x": x.numpy()}))
    assert arrays_of(network)["x"].shape == tuple(x.shape)
    for candidate in window(network, target(itemsize=4)):
        out = torch.full(network.shape, torch.nan)
        candidate.run({"x": x.float()}, Accumulator(out, 1.0, fresh=True))
        assert_close(out.double(), expected, rtol=1e-5, atol=1e-5 * 1e4)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_window_of_all_positions_is_a_sum(stride: int) -> None:
    conv = Conv.make(2, 3, (1, 3), (5, 8), stride=stride)
    network = simplify(quantities.patch_sum(conv, 2))
    for candidate in window(network, target()):
        assert candidate.operations[0].name == "sum i1"
        assert len(candidate.operations) == 2
