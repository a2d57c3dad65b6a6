"""Khatri-Rao: sums of squared products from Gram matrices, for many vectors.

``sum_v (sum_o S[v, c, o] U[d, o])^2 = sum_{o, o'} G[c, o, o'] U[d, o] U[d, o']`` with
``G[c] = S[c]^T S[c]``: one matrix product over pairs ``o <= o'``, of as many
multiply-adds as ``(O + 1) / 2`` vectors would take. Its terms cancel where ``S`` is
nearly orthogonal to the patches: what rounds to less than zero is set to zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

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
from tn_extensions.compiler.primitives.blocks import Blocks, Place, blocks, can_cut
from tn_extensions.compiler.primitives.crossed import Halves
from tn_extensions.compiler.product import multiply
from tn_extensions.network import TensorNetwork

_BLOCK = 2**20
"""Elements of what is multiplied at a time."""


@as_defined
def khatri_rao(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Multiply pairs of one operand's positions with Gram matrices of the other."""
    kept = {*network.output_indices}
    for halves in Halves.all(network):
        left, right = map(halves.private, (halves.left, halves.right))
        vectors = [index for index in right if index not in kept]
        if not halves.shared >= {*left, *right, *halves.batch} or not {*left} <= kept:
            continue
        if halves.size(vectors) < 2 or halves.right.dims:
            continue
        axes = [*((j,) for j in halves.batch), halves.terms, left]
        patches = TensorNetwork(halves.left.nodes(network), axes, network.sizes)
        cut = [j for j in halves.batch if can_cut(patches, j)]
        parts = blocks(patches, [(j, 1) for j in cut], target)
        yield _candidate(halves, parts, target)


def _candidate(halves: Halves, parts: Blocks, target: Target) -> Candidate:
    network, sizes, batch = halves.network, halves.network.sizes, halves.batch
    kept = network.output_indices
    left, right = map(halves.private, (halves.left, halves.right))
    rows = [index for index in right if index in kept]
    vectors = [index for index in right if index not in kept]
    kept_batch = [index for index in batch if index in kept]
    read = halves.right.unfolding((*batch, *rows, *vectors, *halves.terms), sizes)
    height, width, many, terms = map(halves.size, (rows, left, vectors, halves.terms))
    order = [kept.index(index) for index in (*kept_batch, *rows, *left)]

    def run(tensors: Tensors, into: Accumulator) -> None:
        vectors_of = read.tensor(tensors[halves.right.operand.name])
        total = vectors_of.new_zeros(
            [sizes[index] for index in kept_batch] + [height, width]
        )

        def add(place: Place, value: Tensor) -> None:
            patches = value.reshape(-1, terms, width)
            spans = [place.get(index, (0, sizes[index])) for index in batch]
            points = product(*(range(start, start + size) for start, size in spans))
            for one, point in zip(patches, points, strict=True):
                at = dict(zip(batch, point, strict=True))
                out = total[tuple(at[index] for index in kept_batch)]
                add_products(out, vectors_of[point], one)

        parts.each(tensors, {}, add)
        split = into.out.view([sizes[index] for index in kept]).permute(order)
        into.put(split, total.clamp_(min=0).view(split.shape))
        into.fresh = False

    rates, itemsize = target.rates, target.itemsize
    pairs = terms * (terms + 1) // 2
    cost = rates.move(height * many * terms, itemsize, terms)
    cost = cost + rates.product(terms, terms, many, height, itemsize)
    cost = cost + rates.move(height * pairs, itemsize, 8)
    cost = cost + rates.move(pairs * width, itemsize).times(2)
    cost = cost + rates.product(height, width, pairs, 1, itemsize, contiguous=True)
    cost = cost + Cost(seconds=2 * terms * rates.call)
    held = height * (width + pairs) + 3 * min(_BLOCK + width, pairs * width)
    held += parts.cost.peak + max(_BLOCK, many * terms)
    cost = cost.times(halves.size(batch)) + parts.cost
    steps: tuple[str | Operation, ...] = (
        *parts.operations,
        f"[{height} x] {terms} x {many} @ {many} x {terms}, {pairs} pairs of each",
        f"{height} x {pairs} @ {pairs} x {width}",
    )
    name = f"khatri-rao({parts.name})"
    return priced(name, steps, cost.holding(held), run)


def add_products(out: Tensor, vectors: Tensor, patches: Tensor) -> None:
    """Add ``sum_v (sum_o S[c, v, o] U[o, d])^2`` to ``[C, D]``.

    Args:
        out: Where to add, ``[C, D]``.
        vectors: ``S``, the indices of ``c``, of ``v`` and of ``o``.
        patches: ``U``, ``[O, D]``.
    """
    terms, width = patches.shape
    rows = out.shape[0]
    first, second = torch.triu_indices(terms, terms, device=out.device)
    weights = torch.where(first == second, 1.0, 2.0).to(out.dtype)
    grams = out.new_empty(rows, len(first))
    vectors = vectors.reshape(rows, -1, terms)
    count = max(1, _BLOCK // vectors[0].numel())
    for start in range(0, rows, count):
        some = vectors[start : start + count].contiguous()
        square = (some.mT @ some).flatten(1)
        picked = square.index_select(1, first * terms + second)
        torch.mul(picked, weights, out=grams[start : start + count])

    patches = patches.contiguous()
    block = patches.new_empty(max(1, _BLOCK // width) + terms, width)
    begin = filled = 0
    for position in range(terms):
        size = terms - position
        target = block[filled : filled + size]
        torch.mul(patches[position:], patches[position], out=target)
        filled += size
        if filled + size > len(block) or size == 1:
            left = grams[:, begin : begin + filled]
            out.add_(multiply(left, block[:filled].mT))
            begin, filled = begin + filled, 0
