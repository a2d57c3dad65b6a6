"""A network evaluated a block at a time, each a tensor that is consumed and dropped.

Blocks are nested chunks of some indices. What an operand looks like through its
patterns is evaluated once for all blocks that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, prod

from torch import Tensor

from tn_extensions.compiler.candidate import Candidate, Operation, Target, Tensors
from tn_extensions.compiler.chunks import Chunks
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.primitives.forms import MatrixForm, Side
from tn_extensions.network import Axis, Operand, TensorNetwork

Place = Mapping[str, tuple[int, int]]
"""Start and length of a block along each index that is cut."""

Consume = Callable[[Place, Tensor], None]
Level = tuple[str, int]
"""An index and how many of its values a block has."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A network in blocks.

    Args:
        name: What evaluates a block.
        cost: Cost of them all, with what is held for the largest, itself included.
        operations: What is done.
        number: Number of blocks.
        each: Hands over block after block and keeps none.
    """

    name: str
    cost: Cost
    operations: tuple[Operation, ...]
    number: int
    each: Callable[[Tensors, Place, Consume], None]


def blocks(
    network: TensorNetwork,
    levels: Sequence[Level],
    target: Target,
    staged: Side | None = None,
) -> Blocks:
    """Evaluate a network in blocks.

    Args:
        network: The network.
        levels: What to cut, the outermost first; of indices that can be cut.
        target: What is planned for.
        staged: An operand to read through its patterns first, as soon as no index of
            its is left to be cut.
    """
    if staged is not None and not any(j in staged.indices for j, _ in levels):
        return _staged(network, staged.operand.name, levels, target)
    if levels:
        return _loop(network, levels, target, staged)
    return _whole(target.best(network), prod(network.shape))


def can_cut(network: TensorNetwork, index: str) -> bool:
    """Whether a network can be cut along an index."""
    return bool(Chunks.along(network.nodes, network.sizes, [index]).cuts)


def patterned_sides(network: TensorNetwork) -> Iterator[Side]:
    """Operands whose patterns can be read before the product with the other one."""
    for form in MatrixForm.all(network):
        sides = [side for side in (form.left, form.right) if side.dims]
        if len(sides) == 1:
            yield sides[0]


def stored(name: str, network: TensorNetwork) -> Operand:
    """The result of a network as an operand."""
    axes = (
        Axis.of(size, *((index, network.sizes[index]) for index in axis))
        for axis, size in zip(network.output, network.shape, strict=True)
    )
    return Operand(name, tuple(axes))


def _whole(candidate: Candidate, elements: int) -> Blocks:
    def each(tensors: Tensors, place: Place, consume: Consume) -> None:
        consume(place, candidate.value(tensors))

    cost = candidate.cost.holding(candidate.cost.peak + elements)
    return Blocks(candidate.name, cost, candidate.operations, 1, each)


def _loop(
    network: TensorNetwork,
    levels: Sequence[Level],
    target: Target,
    staged: Side | None,
) -> Blocks:
    (index, size), *inner = levels
    chunks = Chunks.along(network.nodes, network.sizes, [index])
    # how much is cut off depends on all other sizes
    target = target.with_varying(index)

    @cache
    def of(count: int) -> Blocks:
        # the last chunk's, if smaller, is only planned if it is to be evaluated
        return blocks(chunks.network(network, count), inner, target, staged)

    def each(tensors: Tensors, place: Place, consume: Consume) -> None:
        start = 0
        for count, part in chunks.split(tensors, size):
            of(count).each(part, {**place, index: (start, count)}, consume)
            start += count

    one, number = of(size), ceil(chunks.total / size)
    # slices and the bookkeeping of the loop
    cost = (one.cost + Cost(seconds=target.rates.call)).times(number)
    steps = tuple(step.repeated(number) for step in one.operations)
    return Blocks(one.name, cost, steps, number * one.number, each)


def _staged(
    network: TensorNetwork,
    operand: str,
    levels: Sequence[Level],
    target: Target,
) -> Blocks:
    # of this part of the network: patterns read less of it than of the whole
    side, order = next(
        (side, (*form.batch, *free, *form.terms))
        for form in MatrixForm.all(network)
        for side, free in ((form.left, form.rows), (form.right, form.columns))
        if side.operand.name == operand and side.dims
    )
    own = side.nodes(network)
    read = TensorNetwork(own, [(index,) for index in order], network.sizes)
    candidate = target.best(read)
    name = f"{side.operand.name} unfolded"
    rest = network.replace(own, [stored(name, read)])
    parts = blocks(rest, levels, target)

    def each(tensors: Tensors, place: Place, consume: Consume) -> None:
        value = candidate.value(tensors).contiguous()
        parts.each({**tensors, name: value}, place, consume)

    held = prod(read.shape) + max(candidate.cost.peak, parts.cost.peak)
    cost = (candidate.cost + parts.cost).holding(held)
    steps = (*candidate.operations, *parts.operations)
    return Blocks(parts.name, cost, steps, parts.number, each)
