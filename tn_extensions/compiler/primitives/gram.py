"""Self-Gram: evaluate the half in chunks, multiply it with itself, one triangle.

With an unfolded half this is the stock way, bounded in memory; with a dense half (1x1,
patchify, down-sampling) it is a strided view and a matrix product; with window sums it
is KFAC-reduce's outer product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, prod

from torch import Tensor

from tn_extensions.compiler.chunks import Chunks
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.half import Half, shared_indices, split_in_half
from tn_extensions.compiler.primitives.base import Lower, Lowering, Target, Tensors
from tn_extensions.compiler.primitives.blocks import (
    Blocks,
    Place,
    blocks,
    can_cut,
    patterned_sides,
)
from tn_extensions.compiler.primitives.chunked import Chunked
from tn_extensions.compiler.product import FEW, multiply
from tn_extensions.compiler.sink import Sink
from tn_extensions.network import Operand, TensorNetwork
from tn_extensions.network.index import prime

_CACHED_ELEMENTS = 2**21
"""Elements of a half that stay in the cache."""

_BLOCKS = (2**20, 2**22)
"""Elements of a block of rows."""

_FEW_GROUPS = 8
"""Groups below which a batch of products is too short."""

_TILE = 256
"""Smallest tile of a triangle: smaller ones cost the matrix product its speed."""

_SHORT = 128
"""Rows up to which writing the result takes longer than computing it twice."""


def gram(network: TensorNetwork, target: Target, lower: Lower) -> Iterable[Lowering]:
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
        chunks = Chunks.along([half.operand], half.sizes, indices, kept)
        if chunks.cuts or not kept:
            for size in _chunk_sizes(chunks, elements, target):
                parts = Chunked.of(half.network(), chunks, size, target, lower)
                yield _chunked(network, target, half, parts)


def _chunk_sizes(chunks: Chunks, elements: int, target: Target) -> list[int]:
    """One at a time, and as many as the budget (or the cache) allows."""
    total = chunks.total
    fits = max(1, min(total, target.budget * total // (2 * elements * target.itemsize)))
    if chunks.kept:  # pays where groups are small and many
        size = max(_FEW_GROUPS, _CACHED_ELEMENTS * total // (8 * elements))
        return [min(total, size)] if min(total, size) <= fits and total > 1 else []
    return sorted({1, fits, min(fits, ceil(_CACHED_ELEMENTS * total / elements))})


def _chunked(
    network: TensorNetwork, target: Target, half: Half, parts: Chunked
) -> Lowering:
    chunks, number, one = parts.chunks, parts.number, parts.one
    groups, columns = network.shape[:2]
    rows = prod(half.sizes[index] for index in half.rows)
    if chunks.kept:
        groups = ceil(groups / number)
    else:
        rows //= number
    tiles = len(_tiles(columns, rows))

    def run(tensors: Tensors, sink: Sink) -> None:
        # later chunks add to one triangle of a fresh target, which is mirrored at last
        late = sink.fresh and number > 1 and tiles > 1 and not chunks.kept
        targets = chunks.targets(sink, parts.size)
        for value, out in zip(parts.values(tensors), targets, strict=True):
            add_self_gram(value, out, mirrored=not late)
        if late:
            mirror_triangle(sink.out, rows)

    product = target.rates.product(
        ceil(columns / tiles),
        columns,
        rows,
        groups,
        target.itemsize,
        contiguous=rows >= FEW,
    ).times(tiles * (tiles + 1) / (2 * tiles))
    mirrored = target.rates.move(groups * columns**2 / 2, target.itemsize, 4)
    held = groups * columns * rows + one.cost.peak
    cost = (one.cost + product).times(number)
    cost = (cost + (mirrored if tiles > 1 else Cost())).holding(held)
    steps = (
        *parts.steps,
        f"  [{groups} x] {columns} x {rows} @ {rows} x {columns}, "
        f"one triangle in {tiles} tile(s)",
    )
    return Lowering(f"gram({one.primitive})", steps, cost, run)


def gram_of_rows(
    network: TensorNetwork, target: Target, lower: Lower
) -> Iterable[Lowering]:
    """Multiply a half of any operands with itself, over what its copy shares."""
    nodes = split_in_half(network)
    if nodes is None or len(network.output) != 2 or 0 in network.sizes.values():
        return
    shared = shared_indices(network)
    rows, copies = network.output
    if not rows or copies != tuple(map(prime, rows)):
        return
    # what all operands carry first, as products come
    batch = [
        j for j in rows if all(j in n.indices for n in nodes if isinstance(n, Operand))
    ]
    order = (*batch, *(index for index in rows if index not in batch))
    half = TensorNetwork(nodes, (order, tuple(shared)), network.sizes)
    fits = max(1, target.budget // (4 * target.itemsize))
    limits = {min(size, fits) for size in _BLOCKS}
    for staged in (None, *patterned_sides(half)):
        uncut = [j for j in staged.indices if j not in batch] if staged else []
        free = [j for j in shared if j not in uncut and can_cut(half, j)]
        for levels in sorted({_level(half, free, limit) for limit in limits}):
            parts = blocks(half, levels, target, lower, staged)
            yield _of_rows(network, half, parts, target)


def _level(
    half: TensorNetwork, free: Sequence[str], limit: int
) -> tuple[tuple[str, int], ...]:
    """Cut the longest index so that a block has about so many elements."""
    elements = prod(half.shape)
    if not free or elements <= limit:
        return ()
    index = max(free, key=lambda index: half.sizes[index])
    total = half.sizes[index]
    return ((index, ceil(total / min(total, ceil(elements / limit)))),)


def _of_rows(
    network: TensorNetwork, half: TensorNetwork, parts: Blocks, target: Target
) -> Lowering:
    order, rows = half.output[0], network.output[0]
    length, columns = half.shape
    split = [network.sizes[index] for index in order]
    permutation = [order.index(index) for index in rows]
    permutation += [len(rows) + axis for axis in permutation]

    def run(tensors: Tensors, sink: Sink) -> None:
        like = next(iter(tensors.values()))
        total = Sink(like.new_empty(1, length, length), 1.0, fresh=True)

        def add(place: Place, value: Tensor) -> None:
            add_self_gram(value[None], total, mirrored=True)
            total.fresh = False

        parts.each(tensors, {}, add)
        result = total.out.view(split * 2).permute(permutation)
        sink.put(sink.out, result.reshape(network.shape))

    columns = ceil(columns / parts.number)
    rates, itemsize = target.rates, target.itemsize
    product = rates.product(length, length, columns, 1, itemsize, contiguous=True)
    moved = rates.move(length**2, itemsize)
    cost = parts.cost + product.times(parts.number) + moved
    steps = (*parts.steps, f"  {length} x {columns} @ {columns} x {length}")
    held = length**2 + parts.cost.peak
    return Lowering(f"gram({parts.primitive})", steps, cost.holding(held), run)


def _tiles(columns: int, rows: int) -> list[tuple[int, int]]:
    """Bounds of the tiles whose upper triangle is computed."""
    count = 1 if rows <= _SHORT else max(1, min(16, columns // _TILE))
    bounds = [round(number * columns / count) for number in range(count + 1)]
    return list(zip(bounds, bounds[1:], strict=False))


def add_self_gram(half: Tensor, sink: Sink, mirrored: bool) -> None:
    """Add ``half @ half^T`` per group to the sink, at least its upper triangle.

    Args:
        half: Tensor of shape ``[G, D, R]``.
        sink: Target ``[G, D, D]``.
        mirrored: Whether to write the lower triangle, too.
    """
    out = sink.out
    if half.shape[0] == 1:
        half, out = half[0], out[0]
    tiles = _tiles(*half.shape[-2:])
    for start, stop in tiles:
        left = right = half
        if len(tiles) > 1:
            left, right = half[..., start:stop, :], half[..., start:, :]
        upper = out[..., start:stop, start:]
        if not mirrored or len(tiles) == 1:
            sink.put_product(upper, left, right)
            continue
        block = multiply(left, right)
        sink.put(upper, block)
        sink.put(out[..., stop:, start:stop], block[..., stop - start :].mT)


def mirror_triangle(out: Tensor, rows: int) -> None:
    """Copy the upper triangle of tiles (of a half with some rows) to the lower one."""
    for start, stop in _tiles(out.shape[-1], rows):
        for low in range(start, stop, 64):
            high = min(low + 64, stop)
            out[..., stop:, low:high].copy_(out[..., low:high, stop:].mT)
