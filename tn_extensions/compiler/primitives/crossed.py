"""Crossed: contract across the halves first, each operand with its own copy.

A mirrored network whose halves are products of two operands, left and right, over some
indices ``o``: the Gram matrices ``A[o, o']`` of the left and ``B[o, o']`` of the right
operand, multiplied and summed over both. Pays where positions are few: no gradient is
formed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

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
from tn_extensions.compiler.half import shared_indices, split_in_half
from tn_extensions.compiler.primitives.blocks import (
    Place,
    blocks,
    can_cut,
    stored,
)
from tn_extensions.compiler.primitives.forms import MatrixForm, Side
from tn_extensions.network import TensorNetwork
from tn_extensions.network.index import prime

_FEW = 4
"""Entries of a Gram matrix per entry of the half up to which it may pay."""


@dataclass(frozen=True)
class Halves:
    """A mirrored network of two operands per half.

    Args:
        network: The network.
        left: One operand of a half, with its patterns.
        right: The other one.
        terms: The indices that they are joined by.
        shared: The indices that a half shares with its copy.
    """

    network: TensorNetwork
    left: Side
    right: Side
    terms: tuple[str, ...]
    shared: frozenset[str]

    @classmethod
    @lru_cache(maxsize=512)
    def all(cls, network: TensorNetwork) -> tuple[Halves, ...]:
        """The ways of seeing a network so, each operand once on the left."""
        nodes = split_in_half(network)
        if nodes is None or 0 in network.sizes.values():
            return ()
        shared = frozenset(shared_indices(network))
        kept = set(network.output_indices)
        carried = dict.fromkeys(index for node in nodes for index in node.indices)
        output = [(j,) for j in carried if j in shared or j in kept]
        half = TensorNetwork(nodes, output, network.sizes)
        return tuple(
            cls(network, left, right, form.terms, shared)
            for form in MatrixForm.all(half)
            for left, right in ((form.left, form.right), (form.right, form.left))
        )

    @property
    def batch(self) -> tuple[str, ...]:
        """Indices of both operands but for the terms."""
        other = {*self.right.indices} - {*self.terms}
        return tuple(index for index in self.left.indices if index in other)

    @property
    def has_few_terms(self) -> bool:
        """Whether Gram matrices over the terms may be smaller than the half."""
        own = (*self.private(self.left), *self.private(self.right))
        return self.size(self.terms) ** 2 <= _FEW * self.size(own)

    def size(self, indices: Iterable[str]) -> int:
        """Number of values of some indices."""
        return prod(self.network.sizes[index] for index in indices)

    def private(self, side: Side) -> tuple[str, ...]:
        """Indices that only one operand of a half has."""
        own = (*self.batch, *self.terms)
        return tuple(index for index in side.indices if index not in own)

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both operands."""
        return self.left, self.right

    def gram(self, side: Side) -> TensorNetwork:
        """An operand times its copy, ``(batch, columns, columns')``.

        Only what nothing else needs is summed.
        """
        other = self.right if side is self.left else self.left
        needed = {*self.network.output_indices, *other.indices}
        own, shared = side.indices, self.shared
        batch = tuple(j for j in own if j in shared and j in needed)
        columns = tuple(j for j in own if j not in shared)
        network = self.network
        half = TensorNetwork(side.nodes(network), (batch, columns), network.sizes)
        copy = half.relabel(lambda j: j if j in shared else prime(j))
        return half.multiply(copy, (batch, columns, copy.output[1]))


@as_defined
def crossed(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Multiply the Gram matrices of both operands."""
    halves = next(iter(Halves.all(network)), None)
    if halves is None or not halves.has_few_terms:
        return
    elements = sum(prod(halves.gram(side).shape) for side in halves.sides)
    cuts = [
        axis[0]
        for axis in network.output
        if len(axis) == 1 and axis[0] in halves.batch and can_cut(network, axis[0])
    ]
    levels = []
    if cuts:
        total = network.sizes[cuts[0]]
        fits = max(1, target.budget * total // (4 * elements * target.itemsize))
        if fits < total:
            levels = [(cuts[0], fits)]

    def of_block(part: TensorNetwork, varied: Target) -> Candidate:
        return _candidate(Halves.all(part)[0], replace(varied, planner=target.planner))

    parts = blocks(network, levels, replace(target, planner=of_block))
    axes = {axis[0]: number for number, axis in enumerate(network.output) if axis}

    def run(tensors: Tensors, into: Accumulator) -> None:
        def put(place: Place, value: Tensor) -> None:
            out = into.out
            for index, (start, length) in place.items():
                out = out.narrow(axes[index], start, length)
            Accumulator(out, into.scale, into.fresh).put(out, value)

        parts.each(tensors, {}, put)
        into.fresh = False

    yield priced(f"crossed({parts.name})", parts.operations, parts.cost, run)


def _candidate(halves: Halves, target: Target) -> Candidate:
    network = halves.network
    grams = {f"gram of {s.operand.name}": halves.gram(s) for s in halves.sides}
    candidates = {name: target.best(gram) for name, gram in grams.items()}
    operands = [stored(name, gram) for name, gram in grams.items()]
    rest = target.best(TensorNetwork(operands, network.output, network.sizes))

    def compute(tensors: Tensors) -> Tensor:
        values = {name: way.value(tensors) for name, way in candidates.items()}
        return rest.value(values)

    cost, steps = rest.cost, list[Operation]()
    held = rest.cost.peak
    for name, way in candidates.items():
        cost = cost + way.cost
        steps += way.operations
        held += prod(grams[name].shape)
    held = max(held, *(way.cost.peak for way in candidates.values()))
    return priced(
        ", ".join(way.name for way in candidates.values()),
        (*steps, *rest.operations),
        cost.holding(held),
        lambda tensors, into: into.put(into.out, compute(tensors)),
        compute,
    )
