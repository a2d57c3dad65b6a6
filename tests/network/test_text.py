"""Networks and steps print in terms of index names."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.diagram.networks import CASES, conv
from tests.strategies import BATCHES, convs, examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.network import Affine, Axis, Operand, Pattern, simplify
from tn_extensions.network.rules import pair
from tn_extensions.network.text import linear, node_text

EXPAND = """\
operands  x[n, (g ci), i1, i2]            [8, 4, 9, 9]
          x[n, (g cip), i1p, i2p]         [8, 4, 9, 9]
where     i1 = o1 + k1 - 1
          i1p = o1 + k1p - 1
          i2 = o2 + k2 - 1
          i2p = o2 + k2p - 1
summed    n i1 i2 i1p i2p o1 o2
sizes     n=8 g=2 ci=2 i1=9 i2=9 cip=2 i1p=9 i2p=9 k1=3 o1=9 k1p=3 k2=3 o2=9 k2p=3
output    [g, (ci k1 k2), (cip k1p k2p)]  [2, 18, 18]"""


def test_network_prints_names_equations_sums_and_shapes() -> None:
    conv = Conv.make(4, 6, 3, (9, 9), padding=1, groups=2)
    assert str(quantities.kfac_expand(conv, 8)) == EXPAND


@pytest.mark.parametrize("network", CASES.values(), ids=CASES.keys())
def test_prints_all_there_is(network: TensorNetwork) -> None:
    text = str(network)
    for node in network.nodes:
        assert node_text(node, network.sizes) in text
    for index, size in network.sizes.items():
        assert f"{index}={size}" in text
    summed = text.partition("\nsummed ")[2].partition("\nsizes ")[0]
    assert sorted(summed.split()) == sorted(network.summed_indices)
    assert text.endswith(str(list(network.shape)))
    assert "TensorNetwork" not in text


@examples(20)
@given(convs(), BATCHES, st.randoms(use_true_random=False))
def test_text_does_not_depend_on_order(
    conv: Conv, batch_size: int, rng: random.Random
) -> None:
    network = quantities.kfac_expand(conv, batch_size)
    nodes, sizes = list(network.nodes), list(network.sizes.items())
    rng.shuffle(nodes)
    rng.shuffle(sizes)
    other = TensorNetwork(nodes, network.output, dict(sizes))
    assert str(other) == str(network)


def test_empty_network_prints() -> None:
    assert str(TensorNetwork((), (), {})) == "output    []  []"


def test_nodes() -> None:
    strided = Axis(Affine((("o", 2), ("k", 1)), 3), 20)
    operand = Operand("x", (strided, Axis(Affine((), 4), 5)))
    assert node_text(operand, {"o": 4, "k": 2}) == "x[2 o + k + 3, 4]"
    window = Pattern.of("i", {"o": 2, "k": 1}, -1).sum("k", 3)
    assert node_text(window, {}) == "i = 2 o + t - 1, t < 3"
    factor = quantities.kfac_expand(conv(1), 2)
    joined = pair(factor, "o1")
    assert joined is not None
    (node,) = joined.pairs
    text = node_text(node, joined.sizes)
    assert text.count(" = ") == 2
    assert text.endswith(f", summed over o1 < {factor.sizes['o1']}")


def test_linear() -> None:
    assert linear([], 0) == "0"
    assert linear([("a", 0)], 0) == "0"
    assert linear([("a", -1), ("b", 3)], 2) == "-a + 3 b + 2"
    assert linear([("a", 2)], 0, times="*") == "2*a"


def test_steps_print_what_they_change() -> None:
    network = quantities.kfac_expand(Conv.make(4, 6, 2, 12, stride=4), 1)
    _, trace = simplify(network, trace=True)
    for step in trace:
        shared = set(step.before.nodes) & set(step.after.nodes)
        for nodes, sizes in (
            (step.before.nodes, step.before.sizes),
            (step.after.nodes, step.after.sizes),
        ):
            for node in set(nodes) - shared:
                assert node_text(node, sizes) in str(step)
        for index, (old, new) in step.resized.items():
            assert f"{index} from {old} to {new}" in str(step)
        assert step.change in str(trace)
    assert any(step.resized for step in trace)
    assert str(network) in str(trace)
