"""Rows: evaluate the half in blocks of all rows, multiply each with itself, and sum.

For Gram matrices of what halves of any operands evaluate to, over what they share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from tn_extensions.compiler.half import (
    rows_of_gram,
    shared_indices,
    split_in_half,
)
from tn_extensions.compiler.primitives.blocks import (
    Blocks,
    Level,
    Place,
    blocks,
    can_cut,
    patterned_sides,
)
from tn_extensions.compiler.primitives.gram import add_self_gram, put_gram
from tn_extensions.network import Operand, TensorNetwork

_BLOCKS = (2**20, 2**22)
"""Elements of a block."""


@as_defined
def rows(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Multiply a half of any operands with itself, over what its copy shares."""
    nodes, kept = split_in_half(network), rows_of_gram(network)
    if nodes is None or kept is None or 0 in network.sizes.values():
        return
    shared = shared_indices(network)
    # what all operands carry first, as products come
    batch = [
        j for j in kept if all(j in n.indices for n in nodes if isinstance(n, Operand))
    ]
    order = (*batch, *(index for index in kept if index not in batch))
    half = TensorNetwork(nodes, (order, tuple(shared)), network.sizes)
    fits = max(1, target.budget // (4 * target.itemsize))
    limits = {min(size, fits) for size in _BLOCKS}
    for staged in (None, *patterned_sides(half)):
        uncut = [j for j in staged.indices if j not in batch] if staged else []
        free = [j for j in shared if j not in uncut and can_cut(half, j)]
        for levels in sorted({_level(half, free, limit) for limit in limits}):
            parts = blocks(half, levels, target, staged)
            yield _candidate(network, half, parts, target)


def _level(half: TensorNetwork, free: Sequence[str], limit: int) -> tuple[Level, ...]:
    """Cut the longest index so that a block has about so many elements."""
    elements = prod(half.shape)
    if not free or elements <= limit:
        return ()
    index = max(free, key=lambda index: half.sizes[index])
    total = half.sizes[index]
    return ((index, ceil(total / min(total, ceil(elements / limit)))),)


def _candidate(
    network: TensorNetwork, half: TensorNetwork, parts: Blocks, target: Target
) -> Candidate:
    order, kept = half.output[0], network.output[0]
    length, columns = half.shape

    def run(tensors: Tensors, into: Accumulator) -> None:
        like = next(iter(tensors.values()))
        total = Accumulator(like.new_empty(1, length, length), 1.0, fresh=True)

        def add(place: Place, value: Tensor) -> None:
            add_self_gram(value[None], total, mirrored=True)
            total.fresh = False

        parts.each(tensors, {}, add)
        put_gram(into, total.out[0], order, kept, network.sizes)

    columns = ceil(columns / parts.number)
    rates, itemsize = target.rates, target.itemsize
    product = rates.product(length, length, columns, 1, itemsize, contiguous=True)
    moved = rates.move(length**2, itemsize)
    cost = parts.cost + product.times(parts.number) + moved
    steps: tuple[str | Operation, ...] = (
        *parts.operations,
        f"{length} x {columns} @ {columns} x {length}",
    )
    held = length**2 + parts.cost.peak
    return priced(f"rows({parts.name})", steps, cost.holding(held), run)
