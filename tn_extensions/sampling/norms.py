"""Norms of slices, by which they are drawn."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tn_extensions.compiler import plan
from tn_extensions.network import Axis, Operand, TensorNetwork


def slice_norms(
    network: TensorNetwork, index: str, tensors: Mapping[str, Tensor]
) -> Tensor | None:
    """Norms of what each value of an index takes part in, ``[size]``.

    The product over the given operands, each copy of one, of the norm of the slice; of
    those that do not carry the index but meet it in a pattern, of all entries that they
    meet there.
    ``||x_j|| ||g_j||`` leads to the least variance that independent draws can have.

    Args:
        network: The network.
        index: One of its indices.
        tensors: Some of its operands' tensors, by name.

    Returns:
        Norms in float64 on the CPU; None if no given operand meets the index.
    """
    result: Tensor | None = None
    for operand in network.operands:
        squares = None
        if operand.name in tensors:
            own = tensors[operand.name].detach()
            squares = _squares(network, operand, own, index)
        if squares is not None:
            result = squares if result is None else result * squares
    return None if result is None else result.sqrt()


def _squares(
    network: TensorNetwork, operand: Operand, tensor: Tensor, index: str
) -> Tensor | None:
    if index in operand.indices:
        return _own_squares(network, operand, tensor, index)
    for pattern in network.patterns:
        met = set(pattern.indices) & set(operand.indices)
        if index in pattern.indices and len(met) == 1:
            (other,) = met
            squares = _own_squares(network, operand, tensor, other)
            slices = Operand("squares", (Axis.of(len(squares), (other, len(squares))),))
            summed = TensorNetwork([slices, pattern], [(index,)], network.sizes)
            return plan(summed, squares.dtype).run({"squares": squares})
    return None


def _own_squares(
    network: TensorNetwork, operand: Operand, tensor: Tensor, index: str
) -> Tensor:
    """Sum of squares of each slice along an index that the operand carries."""
    number, indices = next(
        (number, axis.whole(network.sizes) or ())
        for number, axis in enumerate(operand.axes)
        if index in axis.position.indices
    )
    others = [axis for axis in range(tensor.dim()) if axis != number]
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    norms = torch.linalg.vector_norm(tensor, dim=others, dtype=dtype)
    squares = norms.to("cpu", torch.float64).square()
    squares = squares.reshape([network.sizes[each] for each in indices])
    summed = [axis for axis, each in enumerate(indices) if each != index]
    return squares.sum(summed) if summed else squares
