"""Properties that every rule must have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import opt_einsum
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from tests.reference import dense
from tests.strategies import BATCHES, convs, noise
from tn_extensions import TensorNetwork, quantities
from tn_extensions.network.simplify import Rule

QUANTITIES = (
    quantities.conv,
    quantities.unfold_input,
    quantities.patch_sum,
    quantities.patch_total,
    quantities.kfac_expand,
    quantities.kfac_reduce,
)


def unfold_weight(conv: quantities.Conv, batch_size: int) -> TensorNetwork:
    """Make the Toeplitz matrix, the convolution's derivative by the input."""
    network = quantities.conv(conv, batch_size)
    (x,) = (operand for operand in network.operands if operand.name == "x")
    kept = [j for j in network.output_indices if j != "n"]
    return network.cut("x", [kept, [j for j in x.indices if j not in ("n", "g")]])


def networks(max_dims: int) -> st.SearchStrategy[TensorNetwork]:
    """Networks of all quantities, and one whose output carries a pattern's index."""
    return st.builds(
        lambda quantity, conv, size: quantity(conv, size),
        st.sampled_from([*QUANTITIES, unfold_weight]),
        convs(max_dims),
        BATCHES,
    )


NETWORKS = networks(max_dims=3)

FLAT_NETWORKS = networks(max_dims=2)
"""For optimal contraction orders, whose search takes exponential time."""


def arrays_of(network: TensorNetwork) -> dict[str, NDArray[Any]]:
    """Noise for the operands of a network, and positions for its selections."""
    arrays: dict[str, NDArray[Any]]
    arrays = {operand.name: noise(operand.shape) for operand in network.operands}
    for node in network.selections:
        order = np.argsort(noise([network.sizes[node.index]]))
        arrays[node.kept] = np.sort(order[: network.sizes[node.kept]])
    return arrays


def assert_same_value(
    network: TensorNetwork, other: TensorNetwork, what: object = ""
) -> None:
    """Both evaluate to the same, densely."""
    arrays = arrays_of(network)
    assert other.shape == network.shape
    expected = dense.evaluate(network, arrays)
    result = dense.evaluate(other, arrays)
    assert_allclose(result, expected, atol=1e-10, err_msg=str(what))


def optimal_flops(network: TensorNetwork) -> float:
    """Multiply-adds of the best pairwise contraction, patterns being dense."""
    shapes = [tuple(network.sizes[j] for j in node.indices) for node in network.nodes]
    _, info = opt_einsum.contract_path(
        network.equation(), *shapes, shapes=True, optimize="optimal"
    )
    return float(info.opt_cost)


def exhaust(
    rule: Callable[[TensorNetwork], TensorNetwork | None], network: TensorNetwork
) -> TensorNetwork:
    """Apply a rule as long as it does anything, checking each application."""
    for _ in range(100):
        rewritten = rule(network)
        if rewritten is None:
            return network
        assert rewritten != network
        assert_same_value(network, rewritten)
        network = rewritten
    raise AssertionError("the rule does not come to an end")


def assert_never_dearer(rule: Rule, network: TensorNetwork) -> None:
    """No application raises the cost of the best contraction."""
    while (rewritten := rule(network)) is not None:
        assert optimal_flops(rewritten) <= optimal_flops(network)
        network = rewritten
