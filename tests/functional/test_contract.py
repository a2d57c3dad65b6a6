"""Networks of any structure evaluate to what their dense contraction is."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.strategies import examples, noise_tensor
from tn_extensions import TensorNetwork
from tn_extensions.network import Axis, Operand, Pattern, build


@st.composite
def networks(draw: st.DrawFn) -> TensorNetwork:
    """Up to three operands with any indices, one or two patterns, perhaps squared."""
    sizes = {"n": 2, "g": draw(st.integers(1, 2)), "ci": 2, "co": 3}
    patterns = []
    for number in range(1, draw(st.integers(1, 2)) + 1):
        i, k, o = f"i{number}", f"k{number}", f"o{number}"
        sizes |= {i: draw(st.integers(3, 6)), k: draw(st.integers(1, 3))}
        sizes[o] = draw(st.integers(1, 4))
        strides = {o: draw(st.integers(1, 2)), k: draw(st.integers(1, 2))}
        patterns.append(Pattern.of(i, strides, -draw(st.integers(0, 2))))
    some = st.lists(st.sampled_from(sorted(sizes)), unique=True, max_size=5)
    operands = [
        Operand(name, tuple(Axis.of(sizes[j], (j, sizes[j])) for j in draw(some)))
        for name in ("x", "weight", "g")[: draw(st.integers(1, 3))]
    ]
    nodes = [*operands, *patterns]
    carried = sorted({index for node in nodes for index in node.indices})
    choice = st.lists(st.sampled_from(carried), unique=True, max_size=4)
    kept = draw(choice)
    network = TensorNetwork(nodes, [[j] for j in kept], sizes)
    if draw(st.booleans()):
        shared = {*draw(choice)}
        copied = [[f"{j}p"] for j in kept if j not in shared]
        network = network.times_copy(shared, [*network.output, *copied])
    return network


def assert_all_ways_agree(network: TensorNetwork) -> None:
    """The chosen way and the rejected ones."""
    tensors = {
        operand.name: noise_tensor([*operand.shape, number + 1])[..., 0]
        for number, operand in enumerate(network.operands)
    }
    arrays = [
        tensors[node.name].numpy()
        if isinstance(node, Operand)
        else node.dense(network.sizes)
        for node in network.nodes
    ]
    expected = torch.as_tensor(
        np.einsum(network.equation(), *arrays, optimize="greedy")
    )
    atol = 1e-10 * max(float(expected.abs().max()), 1.0)
    plan = network.explain(torch.float64).plan
    assert_close(network.evaluate(**tensors), expected, rtol=1e-7, atol=atol)
    for way in (plan.candidate, *plan.rejected):
        result = way.with_value(network.shape).value(tensors)
        assert_close(result, expected, rtol=1e-7, atol=atol, msg=way.name)


@examples(100)
@given(networks())
def test_any_network(network: TensorNetwork) -> None:
    assert_all_ways_agree(network)


def test_window_that_the_operand_sees_twice() -> None:
    """The free index of a pattern is the operand's, too."""
    patterns = [
        Pattern.of("i1", {"o1": 2, "k1": 1}, -2),
        Pattern.of("i2", {"o2": 1, "k2": 1}, -1),
    ]
    sizes = {"n": 2, "i1": 6, "i2": 5, "k1": 3, "k2": 3, "o1": 4, "o2": 5}
    assert_all_ways_agree(
        build(
            {"x": ["n", "i2", "k2", "i1"]},
            ["n", "k2", "o1"],
            sizes,
            patterns,
            summed=["k1", "o2"],
        )
    )


def test_chunks_leave_patterns_whole() -> None:
    """A half is not cut along an index that a pattern of its carries."""
    half = build(
        {"x": ["o1", "i1", "k1"]},
        ["o1", "i1", "k1"],
        {"o1": 9, "i1": 7, "k1": 2},
        [Pattern.of("i1", {"o1": 1, "k1": 2}, -2)],
    )
    assert_all_ways_agree(half.times_copy({"o1", "k1"}, [["o1"], ["i1"], ["i1p"]]))
