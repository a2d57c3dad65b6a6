"""Norms of slices, which determine the probabilities of draws."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tn_extensions.compiler import plan
from tn_extensions.network import Axis, Operand, TensorNetwork


def slice_norms(
    network: TensorNetwork, index: str, tensors: Mapping[str, Tensor]
) -> Tensor | None:
    """Compute the norm of the slices at each value of an index, ``[size]``.

    It is the product over the given operands, including their copies, of the norm of a
    slice. If a pattern joins an operand to the index, the slice has all entries that
    the pattern joins to the value. Norms ``||x_j|| ||g_j||`` lead to the least variance
    of independent draws.

    Args:
        network: The network.
        index: One of its indices.
        tensors: Tensors of some of its operands, by name.

    Returns:
        Norms in float64 on the CPU; None if no given operand has such slices.
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
    """Compute the sum of squares of each slice along an index of the operand."""
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
