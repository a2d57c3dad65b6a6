"""Embed: write the rest of a network to a diagonal of zeros, or to one position.

A pattern may hit an index of the result that no other node carries. Its term is then
also an index of the result. The rest of the network goes to the diagonal where the
pattern is one, or to one position if there is no term. Jacobians have such patterns for
indices that output and operand share.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from torch import Tensor

from tn_extensions.compiler.candidate import Candidate, Operation, Target, Tensors
from tn_extensions.network import Pattern, TensorNetwork


def embed(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Evaluate the rest of the network, and write it where the pattern is one."""
    pattern = next((p for p in network.patterns if _is_place(p, network)), None)
    if pattern is None or 0 in network.sizes.values():
        return
    sizes, index = network.sizes, pattern.index
    output = (tuple(j for j in axis if j != index) for axis in network.output)
    rest = network.rewrite([pattern], [], output=output)
    way = target.best(rest)
    indices, kept = network.output_indices, rest.output_indices
    axis = indices.index(index)

    def compute(tensors: Tensors) -> Tensor:
        value = way.value(tensors).reshape([sizes[j] for j in kept])
        result = value.new_zeros([sizes[j] for j in indices])
        if not pattern.position.terms:
            result.select(axis, pattern.position.start).copy_(value)
            return result.reshape(network.shape)
        ((term, stride),) = pattern.position.terms
        reads = pattern.progressions(term, index, sizes)
        ((_, first, offset, _, begin, end),) = reads
        places = slice(first + stride * begin, first + stride * end, stride)
        own, other = axis, indices.index(term)
        chosen = [slice(None)] * len(indices)
        chosen[own] = places
        chosen[other] = slice(offset + begin, offset + end)
        diagonal = result[tuple(chosen)].diagonal(dim1=own, dim2=other)
        at = kept.index(term)
        diagonal.copy_(value.narrow(at, offset + begin, end - begin).movedim(at, -1))
        return result.reshape(network.shape)

    elements, own = prod(network.shape), prod(rest.shape)
    moved = target.rates.move(elements, target.itemsize)
    cost = moved + target.rates.move(own, target.itemsize, 8)
    written = Operation("write to zeros", f"where {index} is hit", cost)
    yield Candidate(
        f"embed({way.name})",
        (*way.operations, written),
        way.peak + own + elements,
        lambda tensors, into: into.put(into.out, compute(tensors)),
        compute,
        way.differentiable,
    )


def _is_place(pattern: Pattern, network: TensorNetwork) -> bool:
    """Tell whether a pattern only says where in the result the rest goes."""
    kept, terms = set(network.output_indices), pattern.position.terms
    alone = pattern.index in kept and len(network.carriers(pattern.index)) == 1
    if not alone or pattern.summed or len(terms) > 1:
        return False
    if not terms:
        return 0 <= pattern.position.start < network.sizes[pattern.index]
    ((term, stride),) = terms
    return stride > 0 and term in kept and len(network.carriers(term)) > 1
