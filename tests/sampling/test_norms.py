"""Norms by which slices are drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.sampling.estimates import (
    estimate,
    operands,
)
from tests.sampling.test_sampled import INDICES, NETWORK
from tn_extensions import Conv, quantities
from tn_extensions.sampling import Sampler, sample


def test_norms_of_zero_never_lead_to_nan() -> None:
    tensors = operands(NETWORK)
    tensors["x"].zero_()
    keep = dict.fromkeys(INDICES, 0.5)
    sampled = sample(NETWORK, keep, sampler="norm", tensors=tensors)
    assert not sampled.run(tensors).any()


def test_norms_of_operands_reduce_the_variance() -> None:
    """Two slices out of a hundred are a thousand times as large as the others."""
    network = quantities.weight_vjp(Conv.make(1, 1, 1, 4), 100)
    tensors = operands(network)
    tensors["x"][2:] *= 1e-3
    exact = estimate(network, {}, tensors)

    def error(sampler: Sampler, **known: Tensor) -> float:
        runs = [
            sample(network, {"n": 0.1}, sampler=sampler, tensors=known).run(tensors)
            for _ in range(100)
        ]
        return float((torch.stack(runs) - exact).square().mean().sqrt())

    assert error("norm", x=tensors["x"]) < 0.2 * error("bernoulli")
    assert error("norm", **tensors) < error("norm", x=tensors["x"])
    known = {"x": tensors["x"]}
    norm = sample(network, {"n": 0.1}, sampler="norm", tensors=known)
    assert {0, 1} <= {*norm.draws["n"].indices.tolist()}
