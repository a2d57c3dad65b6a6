"""Patch Gram: the Gram matrix of products of two operands, from that of one of them.

``G[(v, n), (v', n')] = sum_{c, o'} (sum_o S[v, n, c, o] A[n, o, n', o']) S[v', n', c,
o']`` with ``A`` the Gram matrix of the patches: for many vectors and few positions,
where forming the rows ``sum_o S U`` takes many more multiply-adds. One triangle of
samples.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.candidate import (
    Candidate,
    Operation,
    Target,
    Tensors,
    as_defined,
    priced,
)
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.half import rows_of_gram
from tn_extensions.compiler.primitives.crossed import Halves
from tn_extensions.compiler.primitives.gram import put_gram
from tn_extensions.compiler.product import multiply
from tn_extensions.network import TensorNetwork
from tn_extensions.network.index import prime

_LARGE = 2**24
"""Multiply-adds from which on the product of two samples is worth a call of its own."""


@as_defined
def patch_gram(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Multiply one operand with the Gram matrix of the other, then with itself."""
    rows = rows_of_gram(network)
    if rows is None:
        return
    for halves in Halves.all(network):
        left, right = map(halves.private, (halves.left, halves.right))
        if halves.right.dims or not halves.has_few_terms:
            continue
        if not {*left} <= halves.shared or not {*rows} <= {*halves.batch, *right}:
            continue
        if not any(index in rows for index in right):
            continue  # without vectors there is nothing to gain
        yield _candidate(halves, target)


def _candidate(halves: Halves, target: Target) -> Candidate:
    network, sizes = halves.network, halves.network.sizes
    rows = network.output[0]
    right = halves.private(halves.right)
    groups = [index for index in halves.batch if index not in rows]
    samples = [index for index in halves.batch if index in rows]
    vectors = [index for index in right if index in rows]
    summed = [index for index in right if index not in rows]
    columns = (*samples, *halves.terms)
    axes = (tuple(groups), columns, tuple(map(prime, columns)))
    patches = target.best(halves.gram(halves.left).replace(output=axes))
    order = (*groups, *samples, *vectors, *summed, *halves.terms)
    read = halves.right.unfolding(order, sizes)
    shape = [
        halves.size(found) for found in (groups, samples, vectors, summed, halves.terms)
    ]
    number, many, height, inner, terms = shape
    order_of_rows = (*samples, *vectors)

    def run(tensors: Tensors, into: Accumulator) -> None:
        given = tensors[halves.right.operand.name]
        vectors_of = read.tensor(given).reshape(shape).contiguous()
        grams = patches.value(tensors).view(number, many, terms, many, terms)
        total = given.new_zeros(many, height, many, height)
        for one, gram in zip(vectors_of, grams, strict=True):
            add_gram(total, one, gram)
        put_gram(into, total.view([many * height] * 2), order_of_rows, rows, sizes)

    rates, itemsize = target.rates, target.itemsize
    pairs = many * (many + 1) / 2
    apply = rates.product(height * inner, terms, terms, 1, itemsize, contiguous=True)
    last = rates.product(height, height, inner * terms, 1, itemsize)
    each = apply + last + Cost(seconds=4 * rates.call)
    elements = number * many * height * inner * terms
    cost = patches.cost + rates.move(elements, itemsize, terms)
    cost = cost + each.times(number * pairs)
    held = number * (many * terms) ** 2 + patches.cost.peak
    held += elements + elements // number + (many * height) ** 2
    steps: tuple[str | Operation, ...] = (
        "gram of patches:",
        *patches.operations,
        f"for each pair of {many} samples: {height * inner} x {terms} @ "
        f"{terms} x {terms}, then {height} x {inner * terms} @ {inner * terms} x "
        f"{height}",
    )
    name = f"patch gram({patches.name})"
    return priced(name, steps, cost.holding(held), run)


def add_gram(total: Tensor, vectors: Tensor, gram: Tensor) -> None:
    """Add inner products of all rows ``S U`` to ``[N, V, N, V]``.

    Args:
        total: Where to add.
        vectors: ``S``, ``[N, V, C, O]``.
        gram: Gram matrix of the patches, ``[N, O, N, O]``.
    """
    many, height, inner, terms = vectors.shape
    flat = vectors.flatten(2)
    apart = height * inner * terms**2 >= _LARGE
    for n in range(many):
        before = vectors[: n + 1].flatten(1, 2)
        if apart:
            applied = torch.stack(
                [multiply(s, gram[n, :, m]) for m, s in enumerate(before)]
            )
        else:
            applied = before @ gram[: n + 1, :, n]
        block = applied.view((n + 1) * height, inner * terms) @ flat[n].mT
        block = block.view(n + 1, height, height)
        total[: n + 1, :, n].add_(block)
        total[n, :, :n].add_(block[:n].permute(2, 0, 1))
