"""What estimates are by their definition: slices times random factors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tests.reference import dense
from tn_extensions.network import TensorNetwork
from tn_extensions.sampling import Draw


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
    """The whole network, densely, with all slices times their factors."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    nodes = dense.nodes(network, arrays)
    for index, draw in draws.items():
        nodes.append((factors(draw, network.sizes[index]).numpy(), (index,)))
    result = dense.contract(nodes, network.output_indices)
    return torch.from_numpy(np.ascontiguousarray(result.reshape(network.shape)))
