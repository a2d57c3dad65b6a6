"""Networks of any structure evaluate to what their dense contraction is."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import examples, noise_tensor
from tn_extensions import TensorNetwork
from tn_extensions.network import Axis, Operand, Pattern


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


@examples(150)
@given(networks())
def test_any_network(network: TensorNetwork) -> None:
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
    expected = np.einsum(network.equation(), *arrays, optimize="greedy")
    result = network.evaluate(**tensors)
    assert result.shape == network.shape
    scale = max(float(abs(expected).max(initial=0)), 1.0)
    assert torch.allclose(result, torch.tensor(expected), atol=1e-10 * scale)
