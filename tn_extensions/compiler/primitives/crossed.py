"""Crossed: contract across the halves first, each operand with its own copy.

The halves are products of a left and a right operand over some indices ``o``. The
result is the product of their Gram matrices, ``A[o, o']`` of the left and ``B[o, o']``
of the right operand, summed over ``o`` and ``o'``. No gradient is formed, which pays if
there are few positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod

from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.candidate import (
    Candidate,
    Operation,
    Target,
    Tensors,
    as_defined,
)
from tn_extensions.compiler.half import Half
from tn_extensions.compiler.primitives.blocks import (
    Cut,
    Place,
    blocks,
    can_cut,
)
from tn_extensions.compiler.primitives.forms import MatrixForm
from tn_extensions.network import TensorNetwork
from tn_extensions.network.index import prime
from tn_extensions.network.parts import stored

_FEW = 4
"""Largest ratio of a Gram matrix's entries to the half's for which it may pay."""


def forms(half: Half) -> Iterator[MatrixForm]:
    """Yield a half's forms as a product of two operands, in both orders."""
    kept = {*half.batch, *half.rows, *half.columns}
    carried = dict.fromkeys(index for node in half.nodes for index in node.indices)
    alone = half.network(*((index,) for index in carried if index in kept))
    for form in MatrixForm.all(alone):
        yield form
        yield form.swapped


def has_few_terms(form: MatrixForm) -> bool:
    """Tell whether Gram matrices over the terms are small compared with the half."""
    terms, own = form.size(form.terms), form.size((*form.rows, *form.columns))
    return terms**2 <= _FEW * own


def gram_of_left(half: Half, form: MatrixForm) -> TensorNetwork:
    """Multiply the left operand with its copy, ``(batch, columns, columns')``.

    Contract only indices that nothing else needs.
    """
    own, shared = form.left.indices, {*half.batch, *half.rows}
    needed = {*half.batch, *form.right.indices}
    batch = tuple(j for j in own if j in shared & needed)
    columns = tuple(j for j in own if j not in shared)
    nodes = form.left.nodes(half.network())
    alone = TensorNetwork(nodes, (batch, columns), half.sizes)
    copy = alone.relabel(lambda j: j if j in shared else prime(j))
    return alone.multiply(copy, (batch, columns, copy.output[1]))


@as_defined
def crossed(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Multiply the Gram matrices of both operands."""
    half = Half.of(network)
    if half is None or half.dims or 0 in half.sizes.values():
        return
    form = next(forms(half), None)
    if form is None or not has_few_terms(form):
        return
    axes = {axis[0]: n for n, axis in enumerate(network.output) if len(axis) == 1}
    cut = [j for j in axes if j in form.batch and can_cut(network, j)][:1]
    grams = (gram_of_left(half, one) for one in (form, form.swapped))
    elements = sum(prod(one.shape) for one in grams)
    fits = target.budget // (4 * target.itemsize)
    sizes = ((j, max(1, fits * half.sizes[j] // elements)) for j in cut)
    cuts = [Cut(j, size) for j, size in sizes if size < half.sizes[j]]

    def of_block(part: TensorNetwork, varied: Target) -> Candidate:
        return _of_block(part, replace(varied, planner=target.planner))

    parts = blocks(network, cuts, replace(target, planner=of_block))

    def run(tensors: Tensors, into: Accumulator) -> None:
        def put(place: Place, value: Tensor) -> None:
            out = into.out
            for index, (start, length) in place.items():
                out = out.narrow(axes[index], start, length)
            into.put(out, value)

        parts.each(tensors, {}, put)
        into.fresh = False

    yield Candidate(f"crossed({parts.name})", parts.operations, parts.peak, run)


def _of_block(network: TensorNetwork, target: Target) -> Candidate:
    half = Half.of(network)
    assert half is not None
    form = next(forms(half))
    parts = {
        f"gram of {one.left.operand.name}": gram_of_left(half, one)
        for one in (form, form.swapped)
    }
    grams = {name: target.best(part) for name, part in parts.items()}
    operands = [stored(name, part) for name, part in parts.items()]
    rest = target.best(TensorNetwork(operands, network.output, network.sizes))

    def compute(tensors: Tensors) -> Tensor:
        return rest.value({name: gram.value(tensors) for name, gram in grams.items()})

    def run(tensors: Tensors, into: Accumulator) -> None:
        into.put(into.out, compute(tensors))

    operations: list[Operation] = []
    for gram in grams.values():
        operations += gram.operations
    held = rest.peak + sum(prod(part.shape) for part in parts.values())
    return Candidate(
        ", ".join(gram.name for gram in grams.values()),
        (*operations, *rest.operations),
        max(held, *(gram.peak for gram in grams.values())),
        run,
        compute,
    )
