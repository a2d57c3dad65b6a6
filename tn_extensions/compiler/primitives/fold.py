"""Fold: add up patches where they overlap, the adjoint of unfolding.

The network has a single operand. Each pattern ties two of its indices, which are
summed, to an index of the result. For each value of one of the two (usually the
kernel's), a slice of the operand is added to a slice of the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from tn_extensions.compiler.candidate import (
    MOST_CALLS,
    Candidate,
    Operation,
    Target,
    Tensors,
    as_defined,
)
from tn_extensions.compiler.roles import Geometry
from tn_extensions.compiler.strided import View, arrangement
from tn_extensions.network import Pattern, TensorNetwork

_TRAFFIC = 1.5
"""Cost of adding up the operand in copies of it; the result is read, too."""

_MOST_TOGETHER = 32
"""Number of kernel entries up to which all dimensions are folded together."""

_SCATTERED = 6
"""Run length of copies that are about as fast as torch's kernel."""


class FoldedDim(NamedTuple):
    """A pattern to fold: an index of the result, and two of the operand.

    Args:
        place: The index of the result.
        free: The operand's index whose values are added one by one, if there is one.
        shared: The operand's other index.
        slices: For each value of ``free``, slices of ``place`` and ``shared``.
    """

    place: str
    free: str | None
    shared: str
    slices: tuple[tuple[slice, slice], ...]


def folded_dim(pattern: Pattern, network: TensorNetwork) -> FoldedDim | None:
    """Read a pattern as a sum over windows; None if it is not of that form."""
    kept = set(network.output_indices)
    places = [j for j in pattern.indices if j in kept]
    own = [j for j in pattern.indices if j not in kept]
    alone = all(len(network.carriers(j)) == 1 for j in places)
    joined = all(len(network.carriers(j)) == 2 for j in own)
    if len(places) != 1 or not 1 <= len(own) <= 2 or pattern.summed:
        return None
    if not alone or not joined:
        return None
    (place,), sizes = places, network.sizes
    hits = place == pattern.index
    if hits:
        own.sort(key=lambda index: sizes[index])
        shared = own[-1]
    else:
        shared = pattern.index
    free = next((index for index in own if index != shared), None)
    stride = 1 if hits else pattern.position.stride(place)
    slices = []
    for reads in pattern.progressions(place, shared, sizes):
        count = reads.end - reads.begin
        first = reads.offset + reads.step * reads.begin
        partner = reads.residue + stride * reads.begin
        hit, read = (
            slice(start, start + step * (count - 1) + 1, step) if count else slice(0)
            for start, step in ((first, reads.step), (partner, stride))
        )
        slices.append((hit, read))
    return FoldedDim(place, free, shared, tuple(slices))


def fold(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Add slices of the operand to slices of the result."""
    if len(network.operands) != 1 or not network.patterns or network.pairs:
        return
    (operand,), sizes = network.operands, network.sizes
    found = [folded_dim(pattern, network) for pattern in network.patterns]
    dims = [dim for dim in found if dim is not None]
    if len(dims) != len(found) or 0 in sizes.values():
        return
    places = [dim.place for dim in dims]
    kept = [j for j in network.output_indices if j not in places]
    free = [dim.free for dim in dims if dim.free is not None]
    order = (*free, *kept, *(dim.shared for dim in dims))
    if {*order} != {*operand.indices} or len({*order}) < len(order):
        return
    # together, nothing intermediate is held; one by one, long kernels take fewer calls
    calls = prod(sizes[j] for j in free)
    rounds = [dims] if calls <= _MOST_TOGETHER else [[dim] for dim in dims]
    if sum(prod(len(dim.slices) for dim in own) for own in rounds) > MOST_CALLS:
        return
    present = (*kept, *places)
    viewed = View(operand, order, sizes)
    arrange = arrangement(present, network.output, sizes)

    def compute(tensors: Tensors) -> Tensor:
        value = viewed(tensors[operand.name])
        space = [dim.shared for dim in dims]
        for own in rounds:
            value = _folded(value, dims, own, space, sizes)
        return arrange(value)

    last = dims[-1]
    steps = (side.step or 1 for pair in last.slices for side in pair)
    row = sizes[last.shared] / max(steps)  # skipped elements are touched, too
    operations, held = [], 0
    elements = prod(sizes[j] for j in order)
    for own in rounds:
        read = elements
        for dim in own:
            elements = elements // sizes[dim.shared] * sizes[dim.place]
            elements //= len(dim.slices)
        times = prod(len(dim.slices) for dim in own)
        moved = target.rates.move(_TRAFFIC * read / times, target.itemsize, row)
        zeros = target.rates.move(elements / 2, target.itemsize)
        text = ", ".join(dim.place for dim in own)
        operations.append(Operation("zeros", text, zeros))
        operations.append(Operation(f"add {operand.name}", f"to {text}", moved, times))
        held += elements
    yield Candidate(
        "fold",
        tuple(operations),
        held - elements,
        lambda tensors, into: into.put(into.out, compute(tensors)),
        compute,
    )


def _folded(
    value: Tensor,
    dims: Sequence[FoldedDim],
    own: Sequence[FoldedDim],
    space: list[str],
    sizes: Mapping[str, int],
) -> Tensor:
    """Fold some dimensions, whose free indices are the first axes.

    Args:
        value: The operand, with spatial axes last.
        dims: All dimensions.
        own: The dimensions to fold.
        space: Indices of the spatial axes; changed in place to those of the result.
        sizes: Sizes of the indices.

    Returns:
        The folded tensor.
    """
    parts = _unbound(value, sum(dim.free is not None for dim in own))
    at = [dims.index(dim) for dim in own]
    for axis, dim in zip(at, own, strict=True):
        space[axis] = dim.place
    result = None
    for part, chosen in zip(parts, product(*(dim.slices for dim in own)), strict=True):
        if result is None:
            lead = part.shape[: part.dim() - len(dims)]
            result = value.new_zeros((*lead, *(sizes[j] for j in space)))
        where: list[Any] = [slice(None)] * len(dims)
        what = [*where]
        for axis, (hit, read) in zip(at, chosen, strict=True):
            where[axis], what[axis] = hit, read
        result[(..., *where)].add_(part[(..., *what)])
    assert result is not None
    return result


def _unbound(value: Tensor, axes: int) -> Iterator[Tensor]:
    """Yield the entries along leading axes, unbound to keep autograd's graph small."""
    if not axes:
        yield value
        return
    for part in value.unbind(0):
        yield from _unbound(part, axes - 1)


@as_defined
def fold_natively(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Call torch's kernel, which folds one or two dimensions."""
    count = len(network.patterns)
    if len(network.operands) != 1 or network.pairs or not 1 <= count <= 2:
        return
    (operand,), sizes = network.operands, network.sizes
    kept, places = network.output_indices[:-count], network.output_indices[-count:]
    hit = {pattern.index: pattern for pattern in network.patterns}
    axes = [axis.whole(sizes) for axis in operand.axes]
    dims, kernels, outputs = [], [], []
    for place in places:
        pattern = hit.get(place)
        terms = pattern.position.indices if pattern else ()
        if pattern is None or pattern.summed or not {*terms} <= {*operand.indices}:
            return
        if len(terms) != 2 or 0 in sizes.values():
            return
        kernel, output = sorted(terms, key=operand.indices.index)
        kernels.append(kernel)
        outputs.append(output)
        dims.append(
            Geometry(
                sizes[place],
                sizes[kernel],
                sizes[output],
                pattern.position.stride(output),
                pattern.position.stride(kernel),
                -pattern.position.start,
            )
        )
    if len(dims) != count:  # a pattern's index is summed
        return
    wanted = [*kept, *kernels, *outputs]
    read = [index for axis in axes for index in axis or ()]
    # the places of indices of size one do not matter
    in_order = [[j for j in own if sizes[j] > 1] for own in (wanted, read)]
    if None in axes or {*wanted} != {*read} or in_order[0] != in_order[1]:
        return
    positions = prod(sizes[j] for j in outputs)

    def compute(tensors: Tensors) -> Tensor:
        # as channels of one sample, since torch's kernel loops over samples
        patches = tensors[operand.name].reshape(1, -1, positions)
        return _fold(patches, dims).reshape(network.shape)

    moved = target.rates.move(prod(operand.shape), target.itemsize, _SCATTERED)
    yield Candidate(
        "native fold",
        (Operation("fold", f"{operand.name} {list(operand.shape)}", moved),),
        0,
        lambda tensors, into: into.put(into.out, compute(tensors)),
        compute,
    )


def _fold(patches: Tensor, dims: Sequence[Geometry]) -> Tensor:
    """Fold ``[N, C * K, O]`` to ``[N, C, I1, I2]``."""
    two = [Geometry(1, 1, 1, 1, 1, 0), *dims][-2:]
    fits = all(dim.fits for dim in two)
    # otherwise fold to all positions that are hit, then crop or pad
    sizes = [dim.image if fits else dim.image + dim.left + dim.right for dim in two]
    result = F.fold(
        patches,
        (sizes[0], sizes[1]),
        (two[0].kernel, two[1].kernel),
        (two[0].dilation, two[1].dilation),
        (two[0].left, two[1].left) if fits else 0,
        (two[0].stride, two[1].stride),
    )
    if fits:
        return result
    return F.pad(result, [-side for dim in two[::-1] for side in (dim.left, dim.right)])
