"""Matrix product: two operands, unfolded where they have patterns, as matrices.

A mirrored network is left to the primitives that compute one triangle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from tn_extensions.compiler.primitives.base import Lowering, Target, Tensors
from tn_extensions.compiler.primitives.unfold import (
    UnfoldedDim,
    Unfolding,
    unfolded_dim,
)
from tn_extensions.compiler.product import multiply
from tn_extensions.compiler.sink import Sink
from tn_extensions.compiler.strided import grouped
from tn_extensions.network import Operand, TensorNetwork
from tn_extensions.network.rules import is_mirrored

_LARGE = 2**22
"""Multiply-adds from which on each product of a batch is worth a call of its own."""


def matmul(network: TensorNetwork, target: Target) -> Iterable[Lowering]:
    """Multiply the two operands, unfolded where they have patterns, as matrices."""
    if len(network.operands) != 2 or network.pairs or 0 in network.sizes.values():
        return
    reads = _reads(network)
    if reads is None or is_mirrored(network):
        return
    sizes, kept = network.sizes, set(network.output_indices)
    one, two = (_indices(operand, dims) for operand, dims in reads)
    both = [index for index in one if index in two]
    batch = [index for index in both if index in kept]
    summed = [index for index in both if index not in kept]
    rows, columns = ([j for j in found if j not in both] for found in (one, two))
    if not summed or not {*rows, *columns} <= kept:
        return
    left, right = (
        Unfolding(operand, dims, (*batch, *free, *summed), sizes)
        for (operand, dims), free in zip(reads, (rows, columns), strict=True)
    )
    shape = [prod(sizes[j] for j in found) for found in (batch, rows, columns, summed)]
    number, height, width, terms = shape
    present = (*batch, *rows, *columns)
    permutation = [present.index(index) for index in network.output_indices]
    lengths = [len(axis) for axis in network.output]
    apart = number > 1 and height * width * terms >= _LARGE

    def compute(tensors: Tensors) -> Tensor:
        a = left.tensor(tensors[left.operand.name]).reshape(number, height, terms)
        b = right.tensor(tensors[right.operand.name]).reshape(number, width, terms)
        if apart:
            result = torch.stack([multiply(x, y) for x, y in zip(a, b, strict=True)])
        else:
            result = multiply(a, b)
        result = result.reshape([sizes[index] for index in present])
        return grouped(result.permute(permutation), lengths)

    def run(tensors: Tensors, sink: Sink) -> None:
        sink.put(sink.out, compute(tensors))

    elements = number * (height + width) * terms
    rates, itemsize = target.rates, target.itemsize
    cost = rates.move(elements, itemsize, 16)
    if apart:
        one_product = rates.product(height, width, terms, itemsize=itemsize)
        written = rates.move(height * width, itemsize)
        cost = cost + (one_product + written).times(number)
    else:
        cost = cost + rates.product(height, width, terms, number, itemsize)
    cost = cost + rates.move(number * height * width, itemsize, 16)
    steps = (f"[{number} x] {height} x {terms} @ {terms} x {width}, operands unfolded",)
    held = elements + number * height * width
    yield Lowering("matmul", steps, cost.holding(held), run, compute)


def _reads(
    network: TensorNetwork,
) -> list[tuple[Operand, list[UnfoldedDim]]] | None:
    """Each operand with the patterns that only it reads; None if one is left over."""
    left = list(network.patterns)
    result = []
    for operand in network.operands:
        dims = []
        for pattern in list(left):
            dim = unfolded_dim(pattern, operand, network.sizes)
            if (
                dim is not None
                and dim.read not in network.output_indices
                and len(network.carriers(dim.read)) == 2
            ):
                dims.append(dim)
                left.remove(pattern)
        result.append((operand, dims))
    return None if left else result


def _indices(operand: Operand, dims: Sequence[UnfoldedDim]) -> list[str]:
    """What an operand carries once it is unfolded."""
    read = {dim.read for dim in dims}
    found = [index for index in operand.indices if index not in read]
    added = (index for dim in dims for index in (dim.free, dim.shared) if index)
    return list(dict.fromkeys([*found, *added]))
