"""Patch Gram: the Gram matrix of products of two operands, from one operand's own.

``G[(v, n), (v', n')] = sum_{c, o'} (sum_o S[v, n, c, o] A[n, o, n', o']) S[v', n', c,
o']``, where ``A`` is the Gram matrix of the patches. With many vectors and few
positions, forming the rows ``sum_o S U`` would take many more multiply-adds. Only one
triangle of the pairs of samples is computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.candidate import (
    Candidate,
    Operation,
    Target,
    Tensors,
    as_defined,
)
from tn_extensions.compiler.half import Half
from tn_extensions.compiler.primitives.crossed import (
    forms,
    gram_of_left,
    has_few_terms,
)
from tn_extensions.compiler.primitives.forms import MatrixForm
from tn_extensions.compiler.primitives.gram import put_gram
from tn_extensions.network import TensorNetwork
from tn_extensions.network.index import prime

_BLOCKS = 2
"""Number of blocks of samples within the budget; few blocks take few calls."""


@as_defined
def patch_gram(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Multiply one operand with the Gram matrix of the other, then with itself."""
    half = Half.of(network)
    if half is None or half.dims or half.batch or 0 in half.sizes.values():
        return
    columns = {*half.columns}
    for form in forms(half):
        if form.right.dims or not has_few_terms(form):
            continue
        if not {*form.rows} <= {*half.rows}:
            continue
        # it only pays with vectors
        if columns <= {*form.batch, *form.columns} and columns & {*form.columns}:
            yield _candidate(half, form, target)


def _candidate(half: Half, form: MatrixForm, target: Target) -> Candidate:
    groups = [index for index in form.batch if index in half.rows]
    samples = [index for index in form.batch if index in half.columns]
    vectors = [index for index in form.columns if index in half.columns]
    summed = [index for index in form.columns if index in half.rows]
    number, many, height, inner, terms = map(
        form.size, (groups, samples, vectors, summed, form.terms)
    )
    columns = (*samples, *form.terms)
    axes = (groups, columns, map(prime, columns))
    patches = target.best(gram_of_left(half, form).replace(output=axes))
    order = (*samples, *groups, *vectors, *summed, *form.terms)
    read = form.right.unfolding(order, half.sizes)

    def run(tensors: Tensors, into: Accumulator) -> None:
        given = read.tensor(tensors[form.right.operand.name])
        left = given.reshape(many, number, height * inner, terms).contiguous()
        right = left.view(many, number, height, -1).transpose(1, 2)
        right = right.reshape(many, height, -1)
        grams = patches.value(tensors).view(number, many, terms, many, terms)
        grams = grams.transpose(0, 1)
        total = given.new_zeros(many * height, many, height)
        for start in range(0, many, size):
            stop = min(start + size, many)
            # products of some samples with all earlier ones, as batches of matrices
            some = grams[:stop, ..., start:stop, :].reshape(stop * number, terms, -1)
            applied = left[:stop].flatten(0, 1) @ some
            applied = applied.view(stop, number, height, inner, -1, terms)
            applied = applied.permute(4, 0, 2, 1, 3, 5)
            applied = applied.reshape(stop - start, stop * height, -1)
            block = applied @ right[start:stop].mT
            total[: stop * height, start:stop] = block.transpose(0, 1)
        total = total.flatten(1)
        total = total.triu() + total.triu(1).mT
        put_gram(into, total[None], (*samples, *vectors), half)

    rates, itemsize = target.rates, target.itemsize
    elements = number * many * height * inner * terms
    grams = number * (many * terms) ** 2
    fits = target.budget // (4 * itemsize * elements)
    size = max(1, min(ceil(many / _BLOCKS), fits))
    blocks = ceil(many / size)
    # mean number of samples up to the end of a block
    before = ceil(many * (blocks + 1) / (2 * blocks))
    applied = rates.product(
        height * inner, size * terms, terms, number * before, itemsize
    ) + rates.move(elements * size, itemsize, terms)
    last = rates.product(
        before * height, height, number * inner * terms, size, itemsize
    )
    operations = (
        *patches.operations,
        Operation(
            "copy",
            f"{form.right.operand.name}, grams",
            rates.move(elements, itemsize, terms) + rates.move(grams, itemsize, terms),
        ),
        Operation(
            "product with grams",
            f"[up to {number * many} x] {height * inner} x {terms} @ {terms} x "
            f"{size * terms}",
            applied,
            blocks,
        ),
        Operation(
            "product of rows",
            f"{height} x {inner * terms} @ {inner * terms} x {height} per two samples",
            last,
            blocks,
        ),
    )
    peak = 2 * grams + (2 + 2 * size) * elements + 3 * (many * height) ** 2
    peak += patches.peak
    return Candidate(f"patch gram({patches.name})", operations, peak, run)
