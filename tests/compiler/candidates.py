"""Checks of candidates, whichever primitive they come from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.testing import assert_close

from tests.network.rules.identities import arrays_of
from tests.reference import dense
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.candidate import (
    Candidate,
    Primitive,
    Target,
)
from tn_extensions.compiler.cost import rates
from tn_extensions.compiler.plan import _cheapest
from tn_extensions.network import simplify
from tn_extensions.network.rules import pair, pairable
from tn_extensions.sampling.narrowed import narrow

LARGE, TINY = 2**28, 1000
"""Memory budgets in bytes: one that never matters, and one that always does."""


def target(budget: int = LARGE, itemsize: int = 8) -> Target:
    """Return the target of a CPU in float64."""
    return Target(rates("cpu"), itemsize, budget, _cheapest)


def with_pairs(network: TensorNetwork, count: int | None = None) -> TensorNetwork:
    """Simplify a network, and join some (or all) of its possible pairs."""
    network = simplify(network)
    for index in pairable(network)[:count]:
        joined = pair(network, index)
        assert joined is not None
        network = joined
    return network


def assert_evaluates(
    candidate: Candidate,
    network: TensorNetwork,
    arrays: dict[str, NDArray[Any]],
    expected: NDArray[np.float64],
) -> None:
    """Check that a candidate replaces a fresh target and adds to any other."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    reference = torch.from_numpy(np.ascontiguousarray(expected))

    def message(text: str) -> str:
        return f"{candidate.label} of {network}: {text}"

    fresh = torch.full(network.shape, torch.nan, dtype=torch.float64)
    candidate.run(tensors, Accumulator(fresh, 0.5, fresh=True))
    assert_close(fresh, 0.5 * reference, msg=message)
    ones = torch.ones(network.shape, dtype=torch.float64)
    candidate.run(tensors, Accumulator(ones, 0.5, fresh=False))
    assert_close(ones, 1 + 0.5 * reference, msg=message)
    if candidate.compute is not None:
        assert_close(candidate.compute(tensors), reference, msg=message)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name])
    assert candidate.operations
    assert candidate.cost.seconds > 0
    assert candidate.peak >= 0


def assert_all_evaluate(
    primitive: Primitive, network: TensorNetwork, budget: int = LARGE
) -> int:
    """Check all candidates that a primitive offers for a network; their number."""
    candidates = list(primitive(network, target(budget)))
    if candidates:
        arrays = arrays_of(network)
        expected = dense.evaluate(network, arrays)
        for candidate in candidates:
            assert_evaluates(candidate, network, arrays, expected)
    return len(candidates)


def layer(num_dims: int = 2, **change: object) -> Conv:
    """Make an ordinary convolution."""
    options = {"kernel_size": 3, "input_size": (6,) * num_dims, "padding": 1}
    return Conv.make(2, 2, **(options | change))  # type: ignore[arg-type]


USUAL: list[dict[str, Any]] = [
    {},
    {"stride": 2},
    {"stride": 3},
    {"dilation": 2},
    {"stride": 2, "dilation": 3, "padding": 3},
    {"padding": 3},
    {"padding": 0},
]
"""What layers differ in, of any number of dimensions."""

OTHERS = {
    "conv": quantities.conv(layer(), 2),
    "unfold_input": quantities.unfold_input(layer(), 2),
    "fold_output": quantities.fold_output(layer(), 2),
    "patch_sum": simplify(quantities.patch_sum(layer(), 2)),
    "kfac_expand": quantities.kfac_expand(layer(), 2),
    "kfac_expand, paired": with_pairs(quantities.kfac_expand(layer(), 2)),
    "kfac_reduce": simplify(quantities.kfac_reduce(layer(), 2)),
    "sampled": narrow(quantities.weight_vjp(layer(), 2), (("i1", 3), ("o2", 2))),
}
"""Networks of every structure, to see which of them a primitive matches."""


def matched(primitive: Primitive) -> set[str]:
    """Names of the networks that a primitive offers to evaluate."""
    return {name for name, net in OTHERS.items() if list(primitive(net, target()))}
