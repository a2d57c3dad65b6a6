"""Patch Gram: the Gram matrix of products of two operands, from that of one of them.

``G[(v, n), (v', n')] = sum_{c, o'} (sum_o S[v, n, c, o] A[n, o, n', o']) S[v', n', c,
o']`` with ``A`` the Gram matrix of the patches: for many vectors and few positions,
where forming the rows ``sum_o S U`` takes many more multiply-adds. One triangle of
samples.
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
        # without vectors there is nothing to gain
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
        # of one sample and each of the others, as batches of matrices
        grams = grams.permute(3, 1, 0, 2, 4).contiguous()
        total = given.new_zeros(many * height, many * height)
        for n in range(many):
            applied = left[: n + 1].flatten(0, 1) @ grams[n, : n + 1].flatten(0, 1)
            applied = applied.view(n + 1, number, height, -1).transpose(1, 2)
            block = applied.reshape((n + 1) * height, -1) @ right[n].mT
            total[: len(block), n * height : (n + 1) * height] = block
        total = total.triu() + total.triu(1).mT
        put_gram(into, total[None], (*samples, *vectors), half)

    rates, itemsize = target.rates, target.itemsize
    pairs = many * (many + 1) / 2
    elements = number * many * height * inner * terms
    grams = number * (many * terms) ** 2
    applied = rates.product(
        height * inner, terms, terms, max(2, ceil(number * pairs / many)), itemsize
    )
    last = rates.product(
        ceil(pairs / many) * height, height, number * inner * terms, 1, itemsize
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
            f"[up to {number * many} x] {height * inner} x {terms} @ {terms} x {terms}",
            applied,
            many,
        ),
        Operation(
            "product of rows",
            f"{height} x {inner * terms} @ {inner * terms} x {height} per two samples",
            last,
            many,
        ),
    )
    peak = 2 * grams + 3 * elements + 3 * (many * height) ** 2 + patches.peak
    return Candidate(f"patch gram({patches.name})", operations, peak, run)
