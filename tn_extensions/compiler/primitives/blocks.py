"""Blocks: evaluate a network block by block; each is consumed and dropped.

A block is a chunk along several indices, in nested loops. An operand can be unfolded
once for all blocks that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, prod

from torch import Tensor

from tn_extensions.compiler.allocate import contiguous
from tn_extensions.compiler.candidate import Candidate, Operation, Target, Tensors
from tn_extensions.compiler.chunks import Chunks
from tn_extensions.compiler.primitives.forms import MatrixForm, Side
from tn_extensions.network import TensorNetwork
from tn_extensions.network.parts import stored

Place = Mapping[str, tuple[int, int]]
"""Start and length of a block, by cut index."""

Consume = Callable[[Place, Tensor], None]


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """A stage that cuts an index into chunks of so many values."""

    index: str
    size: int


@dataclass(frozen=True, slots=True)
class Unfold:
    """A stage that unfolds an operand, for all inner stages."""

    operand: str


Stage = Cut | Unfold


@dataclass(frozen=True, slots=True)
class Blocks:
    """A network in blocks.

    Args:
        name: Name of the candidate that evaluates a block.
        operations: The operations.
        peak: Largest number of elements held, including the block.
        shape: Shape of the largest block.
        number: Number of blocks.
        each: Evaluates the blocks, passes each to a consumer, and keeps none.
    """

    name: str
    operations: tuple[Operation, ...]
    peak: int
    shape: tuple[int, ...]
    number: int
    each: Callable[[Tensors, Place, Consume], None]


def blocks(network: TensorNetwork, stages: Sequence[Stage], target: Target) -> Blocks:
    """Evaluate a network in blocks.

    Args:
        network: The network.
        stages: The stages, the outermost first. They name indices that can be cut, and
            operands that a matrix form of the network unfolds.
        target: The target of the plan.

    Returns:
        The blocks.
    """
    if not stages:
        return _whole(target.best(network), network.shape)
    stage, *inner = stages
    if isinstance(stage, Cut):
        return _loop(network, stage, inner, target)
    return _unfolded(network, stage.operand, inner, target)


def can_cut(network: TensorNetwork, index: str) -> bool:
    """Tell whether a network can be cut along an index."""
    return bool(Chunks.along(network.nodes, network.sizes, [index]).cuts)


def patterned_sides(network: TensorNetwork) -> Iterator[Side]:
    """Yield operands that can be unfolded before the product with the other one."""
    for form in MatrixForm.all(network):
        sides = [side for side in (form.left, form.right) if side.dims]
        if len(sides) == 1:
            yield sides[0]


def _whole(candidate: Candidate, shape: tuple[int, ...]) -> Blocks:
    def each(tensors: Tensors, place: Place, consume: Consume) -> None:
        consume(place, candidate.value(tensors))

    peak = candidate.peak + prod(shape)
    return Blocks(candidate.name, candidate.operations, peak, shape, 1, each)


def _loop(
    network: TensorNetwork, cut: Cut, inner: Sequence[Stage], target: Target
) -> Blocks:
    index, size = cut.index, cut.size
    chunks = Chunks.along(network.nodes, network.sizes, [index])
    # the size of a chunk depends on all other sizes, so it varies
    target = target.with_varying(index)

    @cache
    def of(count: int) -> Blocks:
        # a smaller last chunk is only planned when it is evaluated
        return blocks(chunks.network(network, count), inner, target)

    def each(tensors: Tensors, place: Place, consume: Consume) -> None:
        start = 0
        for count, part in chunks.split(tensors, size):
            of(count).each(part, {**place, index: (start, count)}, consume)
            start += count

    one, number = of(size), ceil(chunks.total / size)
    operations = tuple(step.repeated(number) for step in one.operations)
    number *= one.number
    return Blocks(one.name, operations, one.peak, one.shape, number, each)


def _unfolded(
    network: TensorNetwork, operand: str, inner: Sequence[Stage], target: Target
) -> Blocks:
    # a chunk's own form: its patterns read less than those of the whole network
    side, order = next(
        (side, (*form.batch, *free, *form.terms))
        for form in MatrixForm.all(network)
        for side, free in ((form.left, form.rows), (form.right, form.columns))
        if side.operand.name == operand and side.dims
    )
    own = side.nodes(network)
    read = TensorNetwork(own, [(index,) for index in order], network.sizes)
    candidate = target.best(read)
    name = f"{operand} unfolded"
    rest = network.replace(own, [stored(name, read)])
    parts = blocks(rest, inner, target)

    def each(tensors: Tensors, place: Place, consume: Consume) -> None:
        value = contiguous(candidate.value(tensors))
        parts.each({**tensors, name: value}, place, consume)

    peak = prod(read.shape) + max(candidate.peak, parts.peak)
    operations = (*candidate.operations, *parts.operations)
    return Blocks(parts.name, operations, peak, parts.shape, parts.number, each)
