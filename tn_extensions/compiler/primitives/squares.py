"""Squares: evaluate the half in blocks, square each, and sum.

For networks whose halves share all of what the result carries (norms of per-sample
gradients, diagonals of the GGN): the half alone is never held for the whole batch.
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
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.half import shared_indices, split_in_half
from tn_extensions.compiler.primitives.blocks import (
    Level,
    Place,
    blocks,
    can_cut,
    patterned_sides,
)
from tn_extensions.compiler.primitives.forms import Side
from tn_extensions.network import TensorNetwork
from tn_extensions.network.index import is_primed

_BLOCKS = (350_000, 2**20, 2**22)
"""Elements of a block, or of what it is made of: for fast products in the cache."""

_FEW = 4
"""Terms up to which squares are added one by one."""


def half_of(network: TensorNetwork) -> TensorNetwork | None:
    """The half of a network, with an axis for each index that its copy shares."""
    if any(map(is_primed, network.output_indices)):
        return None
    nodes = split_in_half(network)
    if nodes is None:
        return None
    # operand by operand, as products come
    output = [(index,) for index in shared_indices(network)]
    return TensorNetwork(nodes, output, network.sizes)


@as_defined
def squares(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Square the half and sum, for some sizes of the blocks."""
    half = half_of(network)
    if half is None or 0 in network.sizes.values():
        return
    fits = max(1, target.budget // (4 * target.itemsize))
    for staged in (None, *patterned_sides(half)):
        indices = _cuttable(half, network, staged)
        cuts = {_levels(half, indices, staged, min(size, fits)) for size in _BLOCKS}
        for levels in sorted(cuts):
            yield _candidate(network, half, levels, staged, target)


def _candidate(
    network: TensorNetwork,
    half: TensorNetwork,
    levels: tuple[Level, ...],
    staged: Side | None,
    target: Target,
) -> Candidate:
    parts = blocks(half, levels, target, staged)
    given = network.output_indices
    kept = [index for index in half.output_indices if index in given]
    summed = tuple(
        axis for axis, index in enumerate(half.output_indices) if index not in given
    )
    leading = summed == tuple(range(len(summed)))
    fresh_values = len(half.operands) > 1  # else it may be a view of the operand

    def run(tensors: Tensors, into: Accumulator) -> None:
        if into.fresh:
            into.out.zero_()
        # an axis for each index; of a view, so that nothing is lost
        out = into.out.view([network.sizes[index] for index in given])
        out = out.permute([given.index(index) for index in kept])

        def add(place: Place, value: Tensor) -> None:
            at = out
            for axis, index in enumerate(kept):
                if index in place:
                    at = at.narrow(axis, *place[index])
            terms = value.numel() // at.numel()
            if terms <= _FEW and leading:  # one by one, without a temporary
                for term in value.reshape(terms, *at.shape):
                    at.addcmul_(term, term, value=into.scale)
                return
            value = value.square_() if fresh_values else value.square()
            at.add_(value.sum(summed), alpha=into.scale)

        parts.each(tensors, {}, add)
        into.fresh = False

    rates, itemsize = target.rates, target.itemsize
    elements = prod(half.shape) // parts.number
    squared = rates.move(elements, itemsize)
    if elements > prod(network.shape):  # two passes
        squared = squared.times(2)
    # the first block touches fresh memory, later ones find it in the cache
    fresh = Cost(seconds=elements * itemsize / rates.copy)
    cost = parts.cost + squared.times(parts.number) + fresh
    steps: tuple[str | Operation, ...] = (
        *parts.operations,
        f"  square {elements} entries and sum",
    )
    return priced(f"squares({parts.name})", steps, cost, run)


def _cuttable(
    half: TensorNetwork, network: TensorNetwork, staged: Side | None
) -> list[str]:
    """Indices to cut, outermost first: of both operands, summed, then kept ones.

    The innermost block is then of consecutive rows of the result. What is staged is not
    cut but for the batch.
    """
    kept, operands = network.output_indices, half.operands
    found = [index for index in half.output_indices if can_cut(half, index)]
    both = [j for j in found if all(j in operand.indices for operand in operands)]
    uncut = staged.indices if staged is not None else []
    rest = [index for index in found if index not in (*both, *uncut)]
    if len(operands) > 2:  # products of some would be made again for each block
        rest = [index for index in rest if index not in kept]
    rest.sort(key=lambda index: index in kept)
    return [*both, *rest]


def _levels(
    half: TensorNetwork, indices: Sequence[str], staged: Side | None, limit: int
) -> tuple[Level, ...]:
    """As many values of the innermost index as the limit allows, then of the others."""
    sizes = half.sizes
    carried = [half.output_indices, *(one.indices for one in half.operands)]
    if staged is not None:
        carried.append(tuple(staged.indices))
    # elements of the result and of each operand, all that is cut at a single value
    elements = [prod(sizes[j] for j in own if j not in indices) for own in carried]
    levels: list[Level] = []
    for index in reversed(indices):
        total = sizes[index]
        largest = max(
            n for own, n in zip(carried, elements, strict=True) if index in own
        )
        size = max(1, min(total, limit // largest))
        size = ceil(total / ceil(total / size))  # balanced
        if size < total:
            levels.insert(0, (index, size))
        elements = [
            n * size if index in own else n
            for own, n in zip(carried, elements, strict=True)
        ]
    return tuple(levels)
