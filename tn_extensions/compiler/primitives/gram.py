"""Self-Gram: evaluate the half in blocks, and multiply each with itself.

With an unfolded half, this is how other toolkits compute KFAC, in bounded memory. With
a dense half (1x1, patchify, down-sampling), it is a strided view and a matrix product;
with window sums, KFAC-reduce's outer product; with per-sample gradients, their Gram
matrix. If the copies share all indices of the result (norms of gradients, diagonals of
the GGN), only the diagonal is needed: blocks are squared and summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import ceil, inf, prod

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
    Blocks,
    Cut,
    Place,
    Stage,
    Unfold,
    blocks,
    can_cut,
    patterned_sides,
)
from tn_extensions.compiler.product import multiply
from tn_extensions.network import TensorNetwork

_BLOCKS = (1, 4, 8)
"""Numbers of blocks to try; a small budget takes more.

Few blocks take few calls; small blocks stay in the cache.
"""

_MANY_CALLS = 32
"""Number of calls above which a candidate is dropped if others fit into the budget.

Each call waits for all threads (or launches a kernel), which takes long if other
processes use the same cores. Copies of tensors that happen not to be contiguous are not
counted.
"""

_SHARES = (2, 8)
"""Limits to try for each tensor that is cut: one of so many parts of the budget."""

_TILES = (1, 2, 4)
"""Numbers of tiles to try for one triangle of the result; a single tile is all."""

_TILE = 96
"""Smallest side of a tile; products of smaller ones are slow."""


@as_defined
def gram(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Multiply the half with itself, over the indices that the copies share."""
    half = Half.of(network)
    if half is None or half.dims or 0 in half.sizes.values():
        return
    found = list(_candidates(half, target))
    fitting = (one for one in found if one.peak * target.itemsize <= target.budget)
    few = min((one.cost.calls for one in fitting), default=inf) <= _MANY_CALLS
    yield from (one for one in found if not few or one.cost.calls <= _MANY_CALLS)


def _candidates(half: Half, target: Target) -> Iterator[Candidate]:
    if not half.columns:
        alone = half.network(*((index,) for index in half.shared))
        for stages in _stages(half, alone, target):
            yield _squared(half, blocks(alone, stages, target), target)
        return
    # indices of all operands first, as in the results of products
    common = [j for j in half.columns if all(j in x.indices for x in half.operands)]
    order = (*common, *(index for index in half.columns if index not in common))
    for rows_last in (True, False) if len(half.operands) == 1 else (True,):
        matrix = (order, half.rows) if rows_last else (half.rows, order)
        alone = half.network(half.batch, *matrix)
        for stages in _stages(half, alone, target):
            parts = blocks(alone, stages, target)
            for tiles in _TILES:
                if tiles == 1 or half.size(order) >= _TILE * tiles:
                    yield _multiplied(half, order, rows_last, parts, tiles, target)


def _stages(
    half: Half, alone: TensorNetwork, target: Target
) -> Iterator[tuple[Stage, ...]]:
    """Yield ways of cutting a half, with an operand unfolded before or after a cut."""
    found: dict[tuple[Stage, ...], None] = {}
    fits = target.budget // target.itemsize
    for side in (None, *patterned_sides(alone)):
        own = [] if side is None else side.indices
        carried = [half.shared + half.columns, *(x.indices for x in half.operands), own]
        most = max(map(half.size, carried))
        limits = {
            min(ceil(most / n), fits // share) for n in _BLOCKS for share in _SHARES
        }
        common, rest = _cuttable(half, alone, own)
        for limit in sorted(limits, reverse=True):
            cuts = _cuts(half, carried, (*common, *rest), max(limit, 1))
            if side is None:
                found[cuts] = None
                continue
            unfold = Unfold(side.operand.name)
            outer = tuple(cut for cut in cuts if cut.index in common)
            inner = cuts[len(outer) :]
            if inner:
                found[(*outer, unfold, *inner)] = None
            if outer and half.size(own) <= fits // _SHARES[0]:
                found[(unfold, *cuts)] = None
    yield from found


def _cuttable(
    half: Half, alone: TensorNetwork, unfolded: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the indices to cut, outermost first: those of all operands, and of some.

    Contracted indices come before kept ones, so that the innermost blocks are
    consecutive rows of the result. An unfolded operand is only cut along the indices of
    all operands.
    """
    # batches of matrices can only be cut along an axis of their own
    whole = half.batch if half.columns and len(half.batch) > 1 else ()
    found = [j for j in half.shared if j not in whole and can_cut(alone, j)]
    common = [j for j in found if all(j in x.indices for x in half.operands)]
    rest = [j for j in found if j not in (*common, *unfolded)]
    if len(half.operands) > 2:  # products of some would be computed for each block
        rest = [j for j in rest if j not in half.batch]
    return common, sorted(rest, key=lambda index: index in half.batch)


def _cuts(
    half: Half,
    carried: Sequence[Sequence[str]],
    indices: Sequence[str],
    limit: int,
) -> tuple[Cut, ...]:
    """Choose cuts as large as the limit allows, that of the innermost index first.

    Args:
        half: The half.
        carried: Indices of each tensor in the evaluation.
        indices: Indices to cut, the outermost first.
        limit: Largest number of elements in a block of any tensor.

    Returns:
        The cuts, the outermost first.
    """
    # elements of each tensor at a single value of the indices to cut
    elements = [half.size(j for j in own if j not in indices) for own in carried]
    cuts: list[Cut] = []
    for index in reversed(indices):
        total = half.sizes[index]
        largest = max(
            n for own, n in zip(carried, elements, strict=True) if index in own
        )
        size = max(1, min(total, limit // largest))
        size = ceil(total / ceil(total / size))  # balanced
        if size < total:
            cuts.insert(0, Cut(index, size))
        elements = [
            n * size if index in own else n
            for own, n in zip(carried, elements, strict=True)
        ]
    return tuple(cuts)


def _is_first(half: Half, place: Place) -> bool:
    """Tell whether a block is the first one for its part of the result."""
    return all(start == 0 for j, (start, _) in place.items() if j in half.rows)


def _squared(half: Half, parts: Blocks, target: Target) -> Candidate:
    kept = [index for index in half.shared if index in half.batch]
    contracted = tuple(
        axis for axis, index in enumerate(half.shared) if index not in half.batch
    )
    fresh_values = len(half.operands) > 1  # a value may be a view of a single operand

    def run(tensors: Tensors, into: Accumulator) -> None:
        # an axis for each index, as a view, so that writes reach the result
        whole = into.out.view([half.sizes[index] for index in half.batch])
        whole = whole.permute([half.batch.index(index) for index in kept])

        def add(place: Place, value: Tensor) -> None:
            out = whole
            for axis, index in enumerate(kept):
                if index in place:
                    out = out.narrow(axis, *place[index])
            fresh = into.fresh and _is_first(half, place)
            if value.numel() == out.numel() and not fresh:
                value = value.view(out.shape)
                out.addcmul_(value, value, value=into.scale)
                return
            value = value.square_() if fresh_values else value.square()
            value = value.sum(contracted) if contracted else value
            Accumulator(out, into.scale, fresh).put(out, value)

        parts.each(tensors, {}, add)
        into.fresh = False

    elements = prod(parts.shape)
    moved = target.rates.move(elements, target.itemsize)
    if contracted:
        moved = moved + moved + target.rates.move(half.size(kept), target.itemsize)
    cost = replace(moved, flops=float(elements))
    square = Operation("square and sum", f"{elements} entries", cost, parts.number)
    return Candidate(
        f"squares({parts.name})", (*parts.operations, square), parts.peak, run
    )


def _multiplied(
    half: Half,
    order: Sequence[str],
    rows_last: bool,
    parts: Blocks,
    tiles: int,
    target: Target,
) -> Candidate:
    length = half.size(order)
    in_order = tuple(order) == half.columns

    def run(tensors: Tensors, into: Accumulator) -> None:
        whole = into.out if into.out.dim() == 3 else into.out[None]
        total = Accumulator(whole, into.scale, into.fresh)
        if not in_order:
            total = Accumulator(whole.new_empty(whole.shape), 1.0, fresh=True)
        # in a fresh target, one triangle is mirrored at the end
        late = total.fresh and tiles > 1

        def add(place: Place, value: Tensor) -> None:
            out = total.out
            for index in {*place} & {*half.batch}:
                out = out.narrow(0, *place[index])
            fresh = total.fresh and _is_first(half, place)
            value = value if rows_last else value.mT
            add_self_gram(value, Accumulator(out, total.scale, fresh), tiles, not late)

        parts.each(tensors, {}, add)
        if late:
            mirror_triangle(total.out, tiles)
        if not in_order:
            put_gram(into, total.out, order, half)
        into.fresh = False

    rates, itemsize = target.rates, target.itemsize
    groups, _, rows = parts.shape if rows_last else (parts.shape[0], 0, parts.shape[1])
    one = rates.product(ceil(length / tiles), length, rows, groups, itemsize)
    one = replace(one.times((tiles + 1) / 2), calls=tiles)
    turned = "" if rows_last else ", transposed"
    shapes = f"[{groups} x] {length} x {rows} @ {rows} x {length}{turned}"
    name = "product with itself" if tiles == 1 else f"triangle of {tiles} tiles"
    operations = [*parts.operations, Operation(name, shapes, one, parts.number)]
    peak = parts.peak + groups * length * ceil(length / tiles)
    if tiles > 1:
        cost = rates.move(half.size(half.batch) * length**2 / 2, itemsize, 4)
        operations.append(Operation("mirror", f"{length} x {length}", cost))
    if not in_order:
        moved = rates.move(length**2, itemsize, 4)
        operations.append(Operation("permute", f"{length} x {length}", moved))
        peak += length**2
    return Candidate(f"gram({parts.name})", tuple(operations), peak, run)


def _tiles(columns: int, number: int) -> list[tuple[int, int]]:
    """Return the bounds of tiles, whose upper triangle is computed."""
    bounds = [round(tile * columns / number) for tile in range(number + 1)]
    return list(zip(bounds, bounds[1:], strict=False))


def add_self_gram(half: Tensor, into: Accumulator, tiles: int, mirrored: bool) -> None:
    """Add ``half @ half^T`` per group to an accumulator, at least its upper triangle.

    Args:
        half: Tensor of shape ``[G, D, R]``.
        into: Accumulator of shape ``[G, D, D]``.
        tiles: Number of tiles.
        mirrored: Whether to write the lower triangle, too.
    """
    out = into.out
    if half.shape[0] == 1:
        half, out = half[0], out[0]
    if tiles == 1:
        into.put_product(out, half, half)
        return
    for start, stop in _tiles(half.shape[-2], tiles):
        left, right = half[..., start:stop, :], half[..., start:, :]
        upper = out[..., start:stop, start:]
        if not mirrored:
            into.put_product(upper, left, right)
            continue
        block = multiply(left, right)
        into.put(upper, block)
        into.put(out[..., stop:, start:stop], block[..., stop - start :].mT)


def put_gram(into: Accumulator, gram: Tensor, order: Sequence[str], half: Half) -> None:
    """Write Gram matrices ``[G, D, D]`` whose columns are in another order."""
    split = [half.sizes[index] for index in order]
    axes = [1 + order.index(index) for index in half.columns]
    axes += [len(order) + axis for axis in axes]
    result = gram.view(-1, *split, *split).permute(0, *axes)
    into.put(into.out, result.reshape(into.out.shape))
    into.fresh = False


def mirror_triangle(out: Tensor, tiles: int) -> None:
    """Copy the upper triangle of tiles to the lower one."""
    for start, stop in _tiles(out.shape[-1], tiles)[:-1]:
        out[..., stop:, start:stop].copy_(out[..., start:stop, stop:].mT)
