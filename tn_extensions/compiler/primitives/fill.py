"""Fill: replace slices that were not sampled by zeros, and evaluate the whole network.

A pattern restricted to sampled positions is not a pattern. With zeros at all other
positions it is one again, which other primitives can evaluate.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from torch import Tensor

from tn_extensions.compiler.candidate import (
    Candidate,
    Operation,
    Target,
    Tensors,
    as_defined,
)
from tn_extensions.compiler.slices import merged, place
from tn_extensions.network import TensorNetwork


@as_defined
def fill(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Write sampled slices into zeros, and evaluate the network without sampling."""
    sizes, selections = network.sizes, network.selections
    if not selections:
        return
    names = {each.kept: each.index for each in selections}
    old = network.operands
    new = [operand.resized(sizes, sizes, names) for operand in old]
    whole = network.rewrite([*old, *selections], new)
    if names.keys() & {*whole.indices}:
        return
    best = target.best(whole)
    changed = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]

    def compute(tensors: Tensors) -> Tensor:
        at = {each.index: tensors[each.kept] for each in selections}
        filled = {
            operand.name: place(
                tensors[operand.name],
                [merged(axis.whole(sizes) or (), sizes, at) for axis in operand.axes],
                operand.shape,
            )
            for _, operand in changed
        }
        return best.value({**tensors, **filled})

    operations = []
    for slices, operand in changed:
        shape = " x ".join(map(str, operand.shape))
        zeros, moved = (
            target.rates.move(prod(one.shape), target.itemsize)
            for one in (operand, slices)
        )
        name = f"write {operand.name} to zeros"
        operations.append(Operation(name, shape, zeros + moved))
    yield Candidate(
        f"fill({best.name})",
        (*operations, *best.operations),
        best.peak + sum(prod(operand.shape) for _, operand in changed),
        lambda tensors, into: into.put(into.out, compute(tensors)),
        compute,
        best.differentiable,
    )
