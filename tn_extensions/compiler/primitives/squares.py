"""Squares: evaluate the half in chunks, square it, and sum.

For networks whose halves share all of what the result carries (norms of per-sample
gradients, diagonals of the GGN): the half alone is never held for the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from math import ceil, prod

from tn_extensions.compiler.chunks import Chunks
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.half import shared_indices, split_in_half
from tn_extensions.compiler.primitives.base import Lower, Lowering, Target, Tensors
from tn_extensions.compiler.sink import Sink
from tn_extensions.network import TensorNetwork
from tn_extensions.network.index import is_primed

_CACHED_ELEMENTS = 2**21
"""Elements of a half that are squared at a time."""


def half_of(network: TensorNetwork) -> TensorNetwork | None:
    """The half of a network, with axes for the indices that its copy shares."""
    if any(map(is_primed, network.output_indices)):
        return None
    nodes = split_in_half(network)
    if nodes is None:
        return None
    kept = network.output_indices
    order = [*kept, *(j for j in shared_indices(network) if j not in kept)]
    return TensorNetwork(nodes, [(index,) for index in order], network.sizes)


def squares(network: TensorNetwork, target: Target, lower: Lower) -> Iterable[Lowering]:
    """Square the half and sum."""
    half = half_of(network)
    if half is None or 0 in network.sizes.values():
        return
    summed = half.output_indices[len(network.output_indices) :]
    budget = min(_CACHED_ELEMENTS, target.budget // (4 * target.itemsize))
    chunks = _chunks(half)
    sizes: list[int] = []
    one = prod(half.shape)
    for chunk in chunks:  # as many of the last as fit, then of those before
        one //= chunk.total
    for chunk in reversed(chunks):
        size = max(1, min(chunk.total, budget // max(one, 1)))
        sizes.insert(0, size)
        one *= size
    counts = [
        sorted({size, chunk.total % size} - {0})
        for chunk, size in zip(chunks, sizes, strict=True)
    ]
    lowerings = {}
    for choice in product(*counts):
        part = half
        for chunk, count in zip(chunks, choice, strict=True):
            part = chunk.network(part, count)
        lowerings[choice] = lower(part, target)

    def walk(
        depth: int, choice: tuple[int, ...], tensors: Tensors, sink: Sink
    ) -> Iterator[tuple[tuple[int, ...], Tensors, Sink]]:
        """Each chunk of all indices, with its place in the result."""
        if depth == len(chunks):
            yield choice, tensors, sink
            return
        chunk, size = chunks[depth], sizes[depth]
        axis = None
        if chunk.index in network.output_indices:
            axis = network.output_indices.index(chunk.index)
        fresh, start = sink.fresh, 0
        for count, part in chunk.split(tensors, size):
            place = sink
            if axis is not None:
                out = sink.out.narrow(axis, start, count)
                place = Sink(out, sink.scale, fresh)
            yield from walk(depth + 1, (*choice, count), part, place)
            start += count
            sink.fresh = False

    def run(tensors: Tensors, sink: Sink) -> None:
        # an axis for each index; of a view, so that nothing is lost
        split = [network.sizes[index] for index in network.output_indices]
        whole = Sink(sink.out.view(split), sink.scale, sink.fresh)
        for choice, parts, place in walk(0, (), tensors, whole):
            value = lowerings[choice].value(parts).square()
            if summed:
                first = value.dim() - len(summed)
                value = value.sum(tuple(range(first, value.dim())))
            place.put(place.out, value)
            place.fresh = False
        sink.fresh = False

    first = lowerings[tuple(sizes)]
    number = prod(ceil(c.total / s) for c, s in zip(chunks, sizes, strict=True))
    elements = prod(half.shape) // max(1, number)
    squared = target.rates.move(elements, target.itemsize).times(2)
    cost = (first.cost + squared + Cost(seconds=10 * target.rates.call)).times(number)
    steps = (
        f"in {number} chunk(s):" if number > 1 else "at once:",
        *(f"  {step}" for step in first.steps),
        f"  square {elements} entries, sum over {summed}",
    )
    yield Lowering(
        f"squares({first.primitive})",
        steps,
        cost.holding(first.cost.peak + 2 * elements),
        run,
    )


def _chunks(half: TensorNetwork) -> list[Chunks]:
    """Up to three indices of the half's result that have an axis of their own."""
    found = []
    for index in half.output_indices:
        chunks = Chunks.along(half.operands, half.sizes, [index])
        if chunks.total > 1 and all(cut.unit == 1 for cut in chunks.cuts.values()):
            found.append(chunks)
    return found[:3]
