"""Evaluate any network on tensors."""

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
    """Evaluate a network with the plan that :func:`~tn_extensions.explain` shows.

    Args:
        network: The network.
        **tensors: A tensor for each operand, by its name. Half-precision tensors are
            computed in float32. For sampled positions, a tensor of distinct integers in
            ascending order, by the name of the index that enumerates them.

    Returns:
        The result, unscaled, of the network's
        :attr:`~tn_extensions.TensorNetwork.shape`.

    Raises:
        TypeError: If operands are missing or unknown, or one is not a floating point
            tensor (or int64, for positions).
        ValueError: If a tensor has another shape, dtype or device.
    """
    shapes = {operand.name: operand.shape for operand in network.operands}
    if not shapes:
        rule = "have an operand"
        raise ValueError(describe(_NAME, "network", rule, "none"))
    positions = [selection.kept for selection in network.selections]
    if set(tensors) != {*shapes, *positions}:
        rule = f"be {sorted([*shapes, *positions])}"
        raise TypeError(describe(_NAME, "operands", rule, sorted(tensors)))
    for name, shape in shapes.items():
        check_shaped(_NAME, name, tensors[name], shape)
    for name in positions:
        _check_positions(name, tensors[name], network.sizes[name])
    first, *others = (name for name in tensors if name in shapes)
    like = tensors[first]
    for name in others:
        check_like(_NAME, name, tensors[name], like.dtype, like, first)
    dtype = result_dtype(like)
    prepared = {name: tensors[name].to(dtype) for name in shapes}
    prepared |= {name: tensors[name] for name in positions}
    chosen = plan(network, dtype, like.device.type)
    with torch.autocast(like.device.type, enabled=False):
        return chosen.run(prepared)


def _check_positions(name: str, positions: Tensor, count: int) -> None:
    if not isinstance(positions, Tensor) or positions.dtype != torch.int64:
        got = getattr(positions, "dtype", type(positions).__name__)
        raise TypeError(describe(_NAME, name, "be a tensor of int64", got))
    if tuple(positions.shape) != (count,):
        rule, got = f"equal [{count}]", list(positions.shape)
        raise ValueError(describe(_NAME, f"{name}.shape", rule, got))
