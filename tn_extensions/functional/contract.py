"""Any network on one's own tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from tn_extensions.compiler import plan
from tn_extensions.errors import describe
from tn_extensions.functional.checks import check_like, check_shaped
from tn_extensions.functional.evaluate import result_dtype
from tn_extensions.network import TensorNetwork
from tn_extensions.network.methods import method_of

_NAME = "TensorNetwork.evaluate"


@method_of(TensorNetwork)
def evaluate(network: TensorNetwork, /, **tensors: Tensor) -> Tensor:
    """Evaluate a network by the plan that :func:`~tn_extensions.explain` shows.

    Args:
        network: What to evaluate.
        **tensors: A tensor for each operand, by its name. Half-precision tensors are
            computed in float32.

    Returns:
        Result of the network's :attr:`~tn_extensions.TensorNetwork.shape`, unscaled.

    Raises:
        TypeError: If operands are missing or unknown, or one is no floating point
            tensor.
        ValueError: If a tensor has another shape, dtype or device.
    """
    shapes = {operand.name: operand.shape for operand in network.operands}
    if not shapes:
        rule = "have an operand"
        raise ValueError(describe(_NAME, "network", rule, "none"))
    if set(tensors) != set(shapes):
        rule = f"be {sorted(shapes)}"
        raise TypeError(describe(_NAME, "operands", rule, sorted(tensors)))
    for name, shape in shapes.items():
        check_shaped(_NAME, name, tensors[name], shape)
    first, *others = tensors
    like = tensors[first]
    for name in others:
        check_like(_NAME, name, tensors[name], like.dtype, like, first)
    dtype = result_dtype(like)
    prepared = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    chosen = plan(network, dtype, like.device.type)
    with torch.autocast(like.device.type, enabled=False):
        return chosen.run(prepared)
