"""Trim: what a pattern never touches is narrowed away."""

from __future__ import annotations

from hypothesis import given

from tests.network.rules.identities import (
    FLAT_NETWORKS,
    NETWORKS,
    assert_never_dearer,
    exhaust,
)
from tests.strategies import examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.network.rules import squeeze, trim


@examples(60)
@given(NETWORKS)
def test_value_is_kept(network: TensorNetwork) -> None:
    exhaust(trim, network)


@examples(40)
@given(FLAT_NETWORKS)
def test_cost_does_not_rise(network: TensorNetwork) -> None:
    assert_never_dearer(trim, network)


def test_down_sampling_keeps_what_is_sampled() -> None:
    network = quantities.conv(Conv.make(2, 2, 1, 9, stride=2), 2)
    trimmed = exhaust(trim, exhaust(squeeze, network))
    assert trimmed.sizes["i1"] == 5
    (pattern,) = trimmed.patterns
    assert pattern.position.stride("o1") == 1


def test_rows_that_no_window_reaches_are_cut_off() -> None:
    network = quantities.kfac_expand(Conv.make(1, 1, 3, 9, stride=3, dilation=1), 1)
    assert exhaust(trim, network).sizes["i1"] == 9
    network = quantities.kfac_expand(Conv.make(1, 1, 3, 11, stride=3), 1)
    assert exhaust(trim, network).sizes["i1"] == 9


def test_outputs_that_read_padding_only_are_cut_off() -> None:
    conv = Conv.make(1, 1, 2, 3, padding=((4, 5),))
    network = exhaust(trim, quantities.kfac_expand(conv, 1))
    assert conv.output_size == (11,)
    assert network.sizes["o1"] == 4


def test_kernel_entries_that_read_padding_only_are_cut_off() -> None:
    conv = Conv.make(1, 1, 3, 1, padding=1)
    network = exhaust(trim, quantities.conv(conv, 1))
    assert network.sizes["k1"] == 1


def test_output_indices_are_never_narrowed() -> None:
    conv = Conv.make(1, 1, 2, 3, padding=((4, 5),))
    assert trim(quantities.unfold_input(conv, 1)) is None


def test_a_network_that_is_zero_stays_as_it_is() -> None:
    conv = Conv.make(1, 1, 1, 1, stride=2, padding=((1, 1),))
    assert conv.output_size == (2,)
    assert trim(quantities.patch_sum(conv, 1)) is None
