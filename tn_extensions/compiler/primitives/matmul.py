"""Matrix product: two operands, unfolded where they have patterns, as matrices.

A mirrored network is left to the primitives that compute one triangle.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tn_extensions.compiler.allocate import empty
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.primitives.base import Lowering, Target, Tensors
from tn_extensions.compiler.primitives.forms import MatrixForm
from tn_extensions.compiler.product import multiply
from tn_extensions.compiler.sink import Sink
from tn_extensions.compiler.strided import grouped
from tn_extensions.compiler.tracing import is_traced
from tn_extensions.network import TensorNetwork
from tn_extensions.network.rules import is_mirrored

_LARGE = 2**25
"""Multiply-adds from which on each product of a batch is worth a call of its own."""


def matmul(network: TensorNetwork, target: Target) -> Iterable[Lowering]:
    """Multiply the two operands, unfolded where they have patterns, as matrices."""
    if not is_mirrored(network):
        for form in MatrixForm.all(network):
            yield _lower(network, form, target)


def _lower(network: TensorNetwork, form: MatrixForm, target: Target) -> Lowering:
    sizes = network.sizes
    left = form.left.unfolding((*form.batch, *form.rows, *form.terms), sizes)
    right = form.right.unfolding((*form.batch, *form.columns, *form.terms), sizes)
    number, height, width, terms = map(
        form.size, (form.batch, form.rows, form.columns, form.terms)
    )
    present = (*form.batch, *form.rows, *form.columns)
    permutation = [present.index(index) for index in network.output_indices]
    lengths = [len(axis) for axis in network.output]
    apart = number > 1 and height * width * terms >= _LARGE

    def compute(tensors: Tensors) -> Tensor:
        a = left.tensor(tensors[left.operand.name]).reshape(number, height, terms)
        b = right.tensor(tensors[right.operand.name]).reshape(number, width, terms)
        if apart and not is_traced((a, b)):
            result = empty((number, height, width), a)
            for x, y, out in zip(a, b, result, strict=True):
                out.copy_(multiply(x, y))
        elif apart:
            result = torch.stack([multiply(x, y) for x, y in zip(a, b, strict=True)])
        else:
            result = multiply(a, b)
        result = result.reshape([sizes[index] for index in present])
        return grouped(result.permute(permutation), lengths)

    def run(tensors: Tensors, sink: Sink) -> None:
        sink.put(sink.out, compute(tensors))

    rates, itemsize = target.rates, target.itemsize
    copied = [
        0 if side.is_free(map(len, axes)) else side.elements + side.padded_elements
        for side, axes in (
            (left, (form.batch, form.rows, form.terms)),
            (right, (form.batch, form.columns, form.terms)),
        )
    ]
    cost = Cost(seconds=6 * rates.call)
    for elements, side in zip(copied, (left, right), strict=True):
        cost = cost + rates.move(elements, itemsize, side.run)
    if apart:
        one_product = rates.product(
            height, width, terms, itemsize=itemsize, contiguous=True
        )
        written = rates.move(height * width, itemsize)
        cost = cost + (one_product + written).times(number)
    else:
        cost = cost + rates.product(
            height, width, terms, number, itemsize, contiguous=True
        )
    order = [index for index in network.output_indices if sizes[index] > 1]
    if order != [index for index in present if sizes[index] > 1]:
        # copied here, or read with strides by whoever takes a view
        cost = cost + rates.move(number * height * width, itemsize, 4)
    steps = (f"[{number} x] {height} x {terms} @ {terms} x {width}, operands unfolded",)
    held = sum(copied)
    return Lowering("matmul", steps, cost.holding(held), run, compute)
