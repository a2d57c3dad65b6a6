"""Squared operands: square an operand that occurs twice with the same indices.

For example, the kernel when the diagonal of a Hessian is backpropagated. The rest is a
convolution, for which torch has a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

from tn_extensions.compiler.candidate import (
    Candidate,
    Operation,
    Target,
    Tensors,
    as_defined,
)
from tn_extensions.network import TensorNetwork


@as_defined
def squared(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Square an operand that occurs twice, and contract the rest of the network."""
    operands = network.operands
    twice = next((one for one in operands if operands.count(one) > 1), None)
    if twice is None or 0 in network.sizes.values():
        return
    name = f"{twice.name} squared"
    rest = network.replace([twice, twice], [replace(twice, name=name)])
    best = target.best(rest)

    def given(tensors: Tensors) -> Tensors:
        return {**tensors, name: tensors[twice.name].square()}

    elements = prod(twice.shape)
    moved = target.rates.move(elements, target.itemsize)
    yield Candidate(
        f"squared {twice.name}, {best.name}",
        (Operation("square", f"{elements}", moved), *best.operations),
        elements + best.peak,
        lambda tensors, into: best.run(given(tensors), into),
        lambda tensors: best.value(given(tensors)),
        best.differentiable,
    )
