"""Estimates by their definition: slices times random factors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.reference import dense
from tests.strategies import BATCHES, convs, noise_tensor
from tn_extensions import TensorNetwork, quantities
from tn_extensions.sampling import SAMPLERS, Draw, Sampled, sample
from tn_extensions.sampling.narrowed import samplable


def factors(draw: Draw, size: int) -> Tensor:
    """``z``: the factor of each slice, zero for dropped ones."""
    z = torch.zeros(size, dtype=torch.float64)
    z[draw.indices] = draw.factors
    return z


def estimate(
    network: TensorNetwork,
    draws: Mapping[str, Draw],
    tensors: Mapping[str, Tensor],
) -> Tensor:
    """Evaluate the whole network densely, with all slices times their factors."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    nodes = dense.nodes(network, arrays)
    for index, draw in draws.items():
        nodes.append((factors(draw, network.sizes[index]).numpy(), (index,)))
    result = dense.contract(nodes, network.output_indices)
    return torch.from_numpy(np.ascontiguousarray(result.reshape(network.shape)))


def operands(network: TensorNetwork) -> dict[str, Tensor]:
    return {each.name: noise_tensor(each.shape) for each in network.operands}


@st.composite
def estimates(draw: st.DrawFn) -> tuple[Sampled, dict[str, Tensor]]:
    """Draw an estimate of some quantity, and tensors."""
    name = draw(st.sampled_from(["weight_vjp"] * 4 + QUANTITIES))
    conv = draw(convs())
    network = getattr(quantities, name)(conv, draw(BATCHES), *ARGUMENTS.get(name, ()))
    tensors = operands(network)
    indices = draw(st.lists(st.sampled_from(samplable(network)), unique=True))
    keep = {j: draw(st.sampled_from([0.3, 0.6, 0.9, 1.0])) for j in indices}
    sampler = draw(st.sampled_from(SAMPLERS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    if sampler == "norm" and draw(st.booleans()):
        tensors[network.operands[-1].name][:1] = 0
    return (
        sample(network, keep, sampler=sampler, generator=generator, tensors=tensors),
        tensors,
    )


QUANTITIES = ["conv", "input_vjp", "per_sample_grad", "kfac_expand", "ggn_diagonal"]
ARGUMENTS = {"ggn_diagonal": (2,)}


def narrowed_or_whole(
    sampled: Sampled, tensors: Mapping[str, Tensor], narrowed: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors to run an estimate on, and names of those that are narrowed."""
    if not narrowed:
        return dict(tensors), []
    return {name: sampled.narrow(name, own) for name, own in tensors.items()}, [
        *tensors
    ]


def narrowed_networks() -> st.SearchStrategy[TensorNetwork]:
    """Networks with sampled positions, none of which is empty."""
    found = estimates().map(lambda case: case[0].network)
    return found.filter(lambda network: 0 not in network.sizes.values())
