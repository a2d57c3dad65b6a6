"""Networks of any structure evaluate to what their dense contraction is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.network.rules.identities import arrays_of
from tests.reference import dense
from tests.strategies import examples, noise_tensor
from tn_extensions import TensorNetwork
from tn_extensions.network import Axis, Operand, Pattern, build
from tn_extensions.sampling.narrowed import narrow, samplable


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
    """Check that all candidates agree, the chosen one and the rejected ones."""
    tensors = {
        operand.name: noise_tensor([*operand.shape, number + 1])[..., 0]
        for number, operand in enumerate(network.operands)
    }
    tensors |= {
        node.kept: torch.from_numpy(arrays_of(network)[node.kept])
        for node in network.selections
    }
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    expected = torch.from_numpy(np.array(dense.evaluate(network, arrays)))
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


@examples(100)
@given(networks(), st.data())
def test_any_sampled_network(network: TensorNetwork, data: st.DataObject) -> None:
    indices = samplable(network)
    assume(indices)
    chosen = data.draw(st.sets(st.sampled_from(indices), min_size=1))
    counts = [
        (index, data.draw(st.integers(1, network.sizes[index])))
        for index in sorted(chosen)
    ]
    assert_all_ways_agree(narrow(network, tuple(counts)))


@pytest.mark.parametrize(
    ("positions", "error", "argument"),
    [
        (None, TypeError, "operands"),
        ([0, 1], TypeError, "si1"),
        (torch.tensor([0.0, 1.0]), TypeError, "si1"),
        (torch.tensor([0, 1, 2]), ValueError, "si1.shape"),
    ],
)
def test_bad_positions(positions: Any, error: type[Exception], argument: str) -> None:
    network = build({"x": ["i1"]}, ["o1"], {"i1": 4, "o1": 3}, [HIT])
    sampled = narrow(network, (("i1", 2),))
    given = {} if positions is None else {"si1": positions}
    with pytest.raises(error) as caught:
        sampled.evaluate(x=torch.ones(2), **given)
    assert_in_form(caught.value, "TensorNetwork.evaluate", argument)
    found = sampled.evaluate(si1=torch.tensor([0, 2]), x=torch.tensor([3.0, 4.0]))
    assert found.tolist() == [0, 4, 0]  # o1 + 1 hits i1


HIT = Pattern.of("i1", {"o1": 1}, 1)


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
