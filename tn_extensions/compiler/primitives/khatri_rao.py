"""Khatri-Rao: sums of squared products from Gram matrices, for many vectors.

``sum_v (sum_o S[v, c, o] U[d, o])^2 = sum_{o, o'} G[c, o, o'] U[d, o] U[d, o']`` with
``G[c] = S[c]^T S[c]``. This is one matrix product over pairs ``o <= o'``, with as many
multiply-adds as ``(O + 1) / 2`` vectors would take. Its terms cancel where ``S`` is
nearly orthogonal to the patches; sums that round to less than zero are set to zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

import torch
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
from tn_extensions.compiler.primitives.blocks import Cut, Place, blocks, can_cut
from tn_extensions.compiler.primitives.crossed import forms
from tn_extensions.compiler.primitives.forms import MatrixForm
from tn_extensions.compiler.product import multiply
from tn_extensions.network import TensorNetwork

_WORTH = 8
"""Largest ratio of multiply-adds to those of forming the rows for which it may pay."""


@as_defined
def khatri_rao(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Multiply pairs of one operand's positions with Gram matrices of the other."""
    half = Half.of(network)
    if half is None or half.dims or half.columns or 0 in half.sizes.values():
        return
    kept, shared = {*half.batch}, {*half.batch, *half.rows}
    for form in forms(half):
        own = {*form.batch, *form.rows, *form.columns}
        if not own <= shared or not {*form.rows} <= kept or form.right.dims:
            continue
        many = form.size(j for j in form.columns if j not in kept)
        if many > 1 and form.size(form.terms) + 1 <= 2 * _WORTH * many:
            yield _candidate(half, form, target)


def _candidate(half: Half, form: MatrixForm, target: Target) -> Candidate:
    kept = [j for j in form.batch if j in half.batch]
    contracted = [j for j in form.batch if j not in half.batch]
    rows = [j for j in form.columns if j in half.batch]
    vectors = [j for j in form.columns if j not in half.batch]
    points, samples, height, many, terms, width = map(
        form.size, (kept, contracted, rows, vectors, form.terms, form.rows)
    )
    pairs = terms * (terms + 1) // 2
    itemsize, rates = target.itemsize, target.rates
    fits = max(1, target.budget // (3 * itemsize))  # elements of each of two copies

    patches = TensorNetwork(
        form.left.nodes(half.network()),
        (kept, contracted, form.terms, form.rows),
        half.sizes,
    )
    cuts: list[Cut] = []
    for index in (*contracted, *kept):
        # samples first: one product sums all samples of a chunk
        total, left = half.sizes[index], points * samples * pairs * max(width, height)
        size = max(1, fits * total // left)
        if size < total and can_cut(patches, index):
            cuts.append(Cut(index, ceil(total / ceil(total / size))))
            break
    parts = blocks(patches, cuts, target)
    points, samples, *_ = parts.shape
    length = max(1, min(pairs, fits // (points * samples * max(width, height))))
    order = (*kept, *rows, *contracted, *vectors, *form.terms)
    read = form.right.unfolding(order, half.sizes)
    axes = [half.batch.index(index) for index in (*kept, *rows, *form.rows)]

    def run(tensors: Tensors, into: Accumulator) -> None:
        whole = read.tensor(tensors[form.right.operand.name])
        total = whole.new_zeros(*(half.sizes[j] for j in kept), height, width)
        first, second = torch.triu_indices(terms, terms, device=whole.device)
        both, weights = second.add(first, alpha=terms), 1 + (first != second)

        def add(place: Place, value: Tensor) -> None:
            own, out = whole, total
            for index, span in place.items():
                own = own.narrow(order.index(index), *span)
                if index in kept:
                    out = out.narrow(kept.index(index), *span)
            own = own.reshape(len(value), height, value.shape[1], many, terms)
            grams = (own.mT @ own).flatten(-2)
            for start in range(0, pairs, length):
                some = slice(start, start + length)
                left = grams.index_select(-1, both[some]).mul_(weights[some]).flatten(2)
                right = value.index_select(2, first[some])
                right = right.mul_(value.index_select(2, second[some]))
                out += multiply(left, right.flatten(1, 2).mT).view(out.shape)

        parts.each(tensors, {}, add)
        split = into.out.view([half.sizes[index] for index in half.batch]).permute(axes)
        into.put(split, total.clamp_(min=0).view(split.shape))
        into.fresh = False

    inner = samples * length
    number, steps = parts.number, parts.number * ceil(pairs / length)
    gathered = rates.move(points * inner * (height + 2 * width), itemsize)
    gathered = gathered + rates.overhead(4)
    operations = (
        *parts.operations,
        Operation(
            "products of vectors",
            f"[{points * samples * height} x] {terms} x {many} @ {many} x {terms}",
            rates.move(points * samples * height * many * terms, itemsize, terms)
            + rates.product(terms, terms, many, points * samples * height, itemsize),
            number,
        ),
        Operation("gather pairs", f"{inner} x {height} and {width}", gathered, steps),
        Operation(
            "matrix product",
            f"[{points} x] {height} x {inner} @ {inner} x {width}",
            rates.product(height, width, inner, points, itemsize) + rates.overhead(1),
            steps,
        ),
    )
    peak = form.size(kept) * height * width + parts.peak
    peak += points * samples * height * (many * terms + terms**2)
    peak += points * inner * (2 * height + 2 * width) + points * height * width
    return Candidate(f"khatri-rao({parts.name})", operations, peak, run)
