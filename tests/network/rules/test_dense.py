"""Dense: patterns that touch each position once become views."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from tests.network.rules.identities import (
    FLAT_NETWORKS,
    NETWORKS,
    assert_never_dearer,
    exhaust,
    unfold_weight,
)
from tests.network.test_network import vector
from tests.strategies import examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.network import Affine, Pattern
from tn_extensions.network.rules import dense


@examples(60)
@given(NETWORKS)
def test_value_is_kept(network: TensorNetwork) -> None:
    exhaust(dense, network)


@examples(40)
@given(FLAT_NETWORKS)
def test_cost_does_not_rise(network: TensorNetwork) -> None:
    assert_never_dearer(dense, network)


def rewritten(conv: Conv) -> TensorNetwork:
    """Return the convolution after all applications of the rule."""
    return exhaust(dense, quantities.conv(conv, 2))


@pytest.mark.parametrize(
    "conv",
    [
        Conv.make(4, 4, 1, 5, groups=2),
        Conv.make(2, 3, (4, 4), (8, 12), stride=4),
        Conv.make(2, 3, (3, 2), (9, 4), dilation=(3, 2)),
        Conv.make(3, 2, 1, 9, stride=3),
        Conv.make(2, 3, 2, 10, stride=1, dilation=5),
        Conv.make(2, 3, 2, 9, stride=3),
    ],
)
def test_disjoint_reads_need_no_pattern(conv: Conv) -> None:
    assert rewritten(conv).patterns == ()


def test_patchify_is_a_reshape() -> None:
    network = rewritten(Conv.make(2, 3, 4, 12, stride=4))
    (x,) = (operand for operand in network.operands if operand.name == "x")
    assert x.axes[2].position == Affine((("o1", 4), ("k1", 1)))


@pytest.mark.parametrize(
    "change",
    [{"padding": 1}, {"kernel_size": 3, "input_size": 9}, {"stride": 1}],
)
def test_overlaps_and_padding_keep_their_pattern(change: dict[str, Any]) -> None:
    options = {"kernel_size": 2, "input_size": 8, "stride": 2} | change
    assert len(rewritten(Conv.make(2, 3, **options)).patterns) == 1


def test_an_index_of_the_output_keeps_its_pattern() -> None:
    network = unfold_weight(Conv.make(2, 3, 2, 8, stride=2), 1)
    assert dense(network) is None


def test_three_steps_that_meet_keep_their_pattern() -> None:
    position = Affine((("a", 1), ("b", 2), ("c", 3)))  # 1 + 2 = 3
    nodes = [vector("x", "i", 7), Pattern("i", position)]
    sizes = {"i": 7, "a": 2, "b": 2, "c": 2}
    assert dense(TensorNetwork(nodes, [["a"], ["b"], ["c"]], sizes)) is None
