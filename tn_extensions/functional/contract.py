"""Any network on one's own tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tn_extensions.compiler import plan
from tn_extensions.errors import describe
from tn_extensions.functional.checks import check_like, check_shaped
from tn_extensions.functional.evaluate import result_dtype
from tn_extensions.network import TensorNetwork

_NAME = "TensorNetwork.evaluate"


def contract(network: TensorNetwork, tensors: Mapping[str, Tensor]) -> Tensor:
    """Value of a network; see :meth:`TensorNetwork.evaluate`."""
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
