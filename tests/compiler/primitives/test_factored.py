"""Factored squares: halves of rank one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compiler.candidates import OTHERS, assert_all_evaluate, layer, target
from tests.strategies import BATCHES, convs, examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.compiler.primitives.factored import factored


def squared(conv: Conv, batch_size: int) -> dict[str, TensorNetwork]:
    """Networks whose halves share what the result carries."""
    return {
        "norm": quantities.per_sample_grad_norm(conv, batch_size, 2),
        "diagonal": quantities.ggn_diagonal(conv, batch_size, 3),
        "diagonals": quantities.ggn_diagonal(conv, batch_size, 3, per_sample=True),
        "moments": quantities.kfac_moments(conv, batch_size, 2, 1),
    }


@pytest.mark.parametrize("name", squared(layer(), 1))
@examples(15)
@given(convs(max_dims=2, transposed=False), BATCHES, st.booleans())
def test_one_position(name: str, conv: Conv, batch_size: int, is_linear: bool) -> None:
    """As of a kernel that covers its input, or of one entry on an input of one."""
    if is_linear:
        conv = Conv.make(conv.in_channels, conv.out_channels, 1, 1, groups=conv.groups)
    else:
        sizes = conv.kernel_size
        conv = Conv.make(
            conv.in_channels, conv.out_channels, sizes, sizes, groups=conv.groups
        )
    network = squared(conv, batch_size)[name]
    assert assert_all_evaluate(factored, network) == 1


def test_other_networks_are_left_alone() -> None:
    for network in OTHERS.values():
        assert not list(factored(network, target()))
    for network in squared(layer(), 2).values():
        assert not list(factored(network, target()))
