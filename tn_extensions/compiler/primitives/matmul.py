"""Matrix product of two operands, which are unfolded if they have patterns.

Mirrored networks are left to primitives that compute only one triangle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.allocate import empty, reshaped
from tn_extensions.compiler.candidate import Candidate, Operation, Target, Tensors
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.primitives.forms import MatrixForm
from tn_extensions.compiler.product import multiply, needs_pieces
from tn_extensions.compiler.strided import arrangement
from tn_extensions.compiler.tracing import is_traced
from tn_extensions.network import TensorNetwork
from tn_extensions.network.rules import is_mirrored

_LARGE = 2**25
"""Multiply-adds from which on each product of a batch may have a call of its own."""


def matmul(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Multiply two operands as matrices, unfolded if they have patterns."""
    if not is_mirrored(network):
        for form in MatrixForm.all(network):
            form = _as_written(form, network)
            yield _candidate(network, form, target, apart=False)
            work = form.size((*form.rows, *form.columns, *form.terms))
            if form.size(form.batch) > 1 and work >= _LARGE:
                yield _candidate(network, form, target, apart=True)


def _as_written(form: MatrixForm, network: TensorNetwork) -> MatrixForm:
    """Exchange the operands if that puts the axes of the result in order."""
    own = [j for j in network.output_indices if j not in form.batch]
    return form.swapped if own and own[0] in form.columns else form


def _candidate(
    network: TensorNetwork, form: MatrixForm, target: Target, apart: bool
) -> Candidate:
    """Multiply a batch of matrices by one call, or by a call for each."""
    sizes = network.sizes
    left = form.left.unfolding((*form.batch, *form.rows, *form.terms), sizes)
    right = form.right.unfolding((*form.batch, *form.columns, *form.terms), sizes)
    number, height, width, terms = map(
        form.size, (form.batch, form.rows, form.columns, form.terms)
    )
    present = (*form.batch, *form.rows, *form.columns)
    arrange = arrangement(present, network.output, sizes)

    def compute(tensors: Tensors) -> Tensor:
        a = left.tensor(tensors[left.operand.name])
        a = reshaped(a, (number, height, terms))
        b = right.tensor(tensors[right.operand.name])
        b = reshaped(b, (number, width, terms))
        if apart and not is_traced((a, b)):
            result = empty((number, height, width), a)
            into = Accumulator(result, 1.0, fresh=True)
            for x, y, out in zip(a, b, result, strict=True):
                into.put_product(out, x, y)
        elif apart:
            result = torch.stack([multiply(x, y) for x, y in zip(a, b, strict=True)])
        else:
            result = multiply(a, b)
        return arrange(result)

    def run(tensors: Tensors, into: Accumulator) -> None:
        into.put(into.out, compute(tensors))

    rates, itemsize = target.rates, target.itemsize
    operations, held = [], 0
    for side, axes in (
        (left, (form.batch, form.rows, form.terms)),
        (right, (form.batch, form.columns, form.terms)),
    ):
        if not side.is_free(map(len, axes)):
            elements = side.elements + side.padded_elements
            held += elements
            cost = rates.move(elements, itemsize, side.run)
            cost = replace(cost, calls=2 if side.padded_elements else 1)
            shape = " x ".join(map(str, side.shape))
            operations.append(Operation(f"unfold {side.operand.name}", shape, cost))
    shapes = f"{height} x {terms} @ {terms} x {width}"
    overhead = Cost(seconds=6 * rates.call)
    if needs_pieces(height, width, terms):  # pieces are copied, multiplied and summed
        overhead = overhead + Cost(calls=5)
    if apart:
        cost = rates.product(height, width, terms, itemsize=itemsize)
        cost = cost + rates.move(height * width, itemsize)
        product = Operation("matrix product", shapes, cost, number)
    else:
        cost = rates.product(height, width, terms, number, itemsize)
        product = Operation("matrix product", f"[{number}] {shapes}", cost + overhead)
    operations.append(product)
    order = [index for index in network.output_indices if sizes[index] > 1]
    if order != [index for index in present if sizes[index] > 1]:
        # copied here, or a view that costs its readers as much
        cost = rates.move(number * height * width, itemsize, 4)
        operations.append(Operation("permute", " x ".join(present), cost))
    return Candidate("matmul", tuple(operations), held, run, compute)
