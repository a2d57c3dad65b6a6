"""Self-Gram: evaluate the half in chunks, multiply it with itself, one triangle.

With an unfolded half this is the stock way, bounded in memory; with a dense half (1x1,
patchify, down-sampling) it is a strided view and a matrix product; with window sums it
is KFAC-reduce's outer product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, prod

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
from tn_extensions.compiler.chunks import Chunks
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.half import Half
from tn_extensions.compiler.primitives.blocks import Place, blocks
from tn_extensions.compiler.product import FEW, multiply
from tn_extensions.network import TensorNetwork

_CACHED_ELEMENTS = 2**21
"""Elements of a half that stay in the cache."""

_FEW_GROUPS = 8
"""Groups below which a batch of products is too short."""

_TILE = 256
"""Smallest tile of a triangle: smaller ones cost the matrix product its speed."""

_SHORT = 128
"""Rows up to which writing the result takes longer than computing it twice."""


@as_defined
def gram(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Multiply the half with itself."""
    half = Half.of(network)
    if half is None or half.dims:
        return
    columns = prod(half.sizes[index] for index in half.columns)
    rows = prod(half.sizes[index] for index in half.rows)
    groups = prod(half.sizes[index] for index in half.batch)
    if not (columns and rows and groups):
        return
    elements = groups * columns * rows
    for indices, kept in ((half.rows, False), (half.batch, True)):
        chunks = Chunks.along(half.nodes, half.sizes, indices, kept)
        if chunks.cuts or not kept:
            for size in _chunk_sizes(chunks, elements, target):
                yield _chunked(network, target, half, chunks, size)


def _chunk_sizes(chunks: Chunks, elements: int, target: Target) -> list[int]:
    """One at a time, and as many as the budget (or the cache) allows."""
    total = chunks.total
    fits = max(1, min(total, target.budget * total // (2 * elements * target.itemsize)))
    if chunks.kept:  # pays where groups are small and many
        size = max(_FEW_GROUPS, _CACHED_ELEMENTS * total // (8 * elements))
        return [min(total, size)] if min(total, size) <= fits and total > 1 else []
    return sorted({1, fits, min(fits, ceil(_CACHED_ELEMENTS * total / elements))})


def _chunked(
    network: TensorNetwork,
    target: Target,
    half: Half,
    chunks: Chunks,
    size: int,
) -> Candidate:
    levels = [(chunks.index, size)] if size < chunks.total else []
    # positions are better copied along the operand's last axis
    layouts = {
        last: blocks(half.network(last), levels, target) for last in (True, False)
    }
    rows_last = layouts[True].cost.seconds <= layouts[False].cost.seconds
    parts = layouts[rows_last]
    groups, columns = network.shape[:2]
    rows = prod(half.sizes[index] for index in half.rows)
    if chunks.kept:
        groups = ceil(groups / parts.number)
    else:
        rows //= parts.number
    tiles = len(_tiles(columns, rows))

    def run(tensors: Tensors, into: Accumulator) -> None:
        # later chunks add to one triangle of a fresh target, which is mirrored at last
        late = into.fresh and parts.number > 1 and tiles > 1 and not chunks.kept

        def add(place: Place, value: Tensor) -> None:
            value = value if rows_last else value.mT
            if chunks.kept and place:
                out = into.out.narrow(0, *place[chunks.index])
                part = Accumulator(out, into.scale, into.fresh)
                add_self_gram(value, part, mirrored=True)
            else:
                add_self_gram(value, into, mirrored=not late)
                into.fresh = False

        parts.each(tensors, {}, add)
        into.fresh = False
        if late:
            mirror_triangle(into.out, rows)

    product = target.rates.product(
        ceil(columns / tiles),
        columns,
        rows,
        groups,
        target.itemsize,
        contiguous=rows >= FEW,
    ).times(tiles * (tiles + 1) / (2 * tiles))
    mirrored = target.rates.move(groups * columns**2 / 2, target.itemsize, 4)
    cost = parts.cost + product.times(parts.number)
    cost = cost + (mirrored if tiles > 1 else Cost())
    steps: tuple[str | Operation, ...] = (
        *parts.operations,
        f"[{groups} x] {columns} x {rows} @ {rows} x {columns}, "
        f"one triangle in {tiles} tile(s)",
    )
    return priced(f"gram({parts.name})", steps, cost, run)


def _tiles(columns: int, rows: int) -> list[tuple[int, int]]:
    """Bounds of the tiles whose upper triangle is computed."""
    count = 1 if rows <= _SHORT else max(1, min(16, columns // _TILE))
    bounds = [round(number * columns / count) for number in range(count + 1)]
    return list(zip(bounds, bounds[1:], strict=False))


def add_self_gram(half: Tensor, into: Accumulator, mirrored: bool) -> None:
    """Add ``half @ half^T`` per group to the accumulator, at least its upper triangle.

    Args:
        half: Tensor of shape ``[G, D, R]``.
        into: Target ``[G, D, D]``.
        mirrored: Whether to write the lower triangle, too.
    """
    out = into.out
    if half.shape[0] == 1:
        half, out = half[0], out[0]
    tiles = _tiles(*half.shape[-2:])
    for start, stop in tiles:
        left = right = half
        if len(tiles) > 1:
            left, right = half[..., start:stop, :], half[..., start:, :]
        upper = out[..., start:stop, start:]
        if not mirrored or len(tiles) == 1:
            into.put_product(upper, left, right)
            continue
        block = multiply(left, right)
        into.put(upper, block)
        into.put(out[..., stop:, start:stop], block[..., stop - start :].mT)


def put_gram(
    into: Accumulator,
    gram: Tensor,
    order: Sequence[str],
    rows: Sequence[str],
    sizes: Mapping[str, int],
) -> None:
    """Put a Gram matrix whose rows are in another order of their indices."""
    split = [sizes[index] for index in order]
    permutation = [order.index(index) for index in rows]
    permutation += [len(rows) + axis for axis in permutation]
    result = gram.view(split * 2).permute(permutation)
    into.put(into.out, result.reshape(into.out.shape))
    into.fresh = False


def mirror_triangle(out: Tensor, rows: int) -> None:
    """Copy the upper triangle of tiles (of a half with some rows) to the lower one."""
    for start, stop in _tiles(out.shape[-1], rows):
        for low in range(start, stop, 64):
            high = min(low + 64, stop)
            out[..., stop:, low:high].copy_(out[..., low:high, stop:].mT)
