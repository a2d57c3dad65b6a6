"""Convolution: call torch's kernels for convolutions and their derivatives.

The network has two operands and one pattern per dimension. Of a pattern's three
indices, each operand carries one and the result the third. If the result carries the
index that is hit, this is a transposed convolution. Otherwise it is a convolution of
the operand that carries it, or a weight gradient if a whole axis of that operand (the
batch) is summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.allocate import empty
from tn_extensions.compiler.candidate import (
    Candidate,
    Operation,
    Target,
    Tensors,
    as_defined,
)
from tn_extensions.compiler.chunks import Chunks
from tn_extensions.compiler.cost import Cost
from tn_extensions.compiler.native import (
    convolution,
    transposed_convolution,
    weight_gradient,
)
from tn_extensions.compiler.roles import LARGE_KERNEL, Geometry, Roles
from tn_extensions.compiler.strided import arrangement
from tn_extensions.compiler.tracing import is_traced
from tn_extensions.network import Operand, TensorNetwork

_MANY_OUTPUTS = 32
"""Number of output positions or channels from which on grouped ones are faster."""

_FEW_CHANNELS = 3
"""Channels per group below which a weight gradient is as slow as a depthwise one."""


@as_defined
def convolve(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Call torch's kernel, with samples as a batch, as groups, or one by one."""
    roles = Roles.of(network)
    if roles is None:
        return
    gradient = _has_axis(roles.image, roles.contracted)
    yield _candidate(network, target, roles, gradient)
    if roles.groups and not roles.contracted and not roles.transposed:
        yield _candidate(network, target, roles, gradient=True)
    for index in roles.groups:
        chunks = Chunks.along(network.nodes, network.sizes, [index])
        if chunks.cuts and (index,) in network.output and not roles.transposed:
            yield _one_by_one(network, target, roles, chunks)


def _one_by_one(
    network: TensorNetwork, target: Target, roles: Roles, chunks: Chunks
) -> Candidate:
    """Compute a weight gradient with a batch of one for each value of an index."""
    index = chunks.index
    alone = replace(
        roles,
        groups=tuple(j for j in roles.groups if j != index),
        contracted=(index, *roles.contracted),
    )
    one = _candidate(chunks.network(network, 1), target, alone, gradient=True)
    axis = network.output.index((index,))
    compute_one = one.compute
    assert compute_one is not None

    def run(tensors: Tensors, into: Accumulator) -> None:
        for number, (_, part) in enumerate(chunks.split(tensors, 1)):
            into.put(into.out.narrow(axis, number, 1), compute_one(part))

    def compute(tensors: Tensors) -> Tensor:
        like = tensors[roles.image.name]
        if not is_traced(tensors.values()):
            out = empty(network.shape, like)
            run(tensors, Accumulator(out, 1.0, fresh=True))
            return out
        parts = (part for _, part in chunks.split(tensors, 1))
        return torch.cat([compute_one(part) for part in parts], dim=axis)

    elements = prod(network.shape) // chunks.total
    written = Operation("write", "", target.rates.move(elements, target.itemsize))
    operations = (step.repeated(chunks.total) for step in (*one.operations, written))
    held = one.peak + elements
    return Candidate(f"{one.name} per {index}", tuple(operations), held, run, compute)


def _candidate(
    network: TensorNetwork, target: Target, roles: Roles, gradient: bool
) -> Candidate:
    """Call torch's kernel for given roles.

    A weight gradient that keeps its samples has them as groups, and a batch of one.
    """
    image_space, kernel_space, result_space = zip(*roles.spatial, strict=True)
    groups, rows, columns = roles.groups, roles.rows, roles.columns
    contracted, sizes = roles.contracted, network.sizes
    inputs, channels = (*groups, *contracted), (*rows, *groups, *columns)
    if roles.transposed:
        kind, evaluate = "transposed convolution", _transposed
        layout = (rows, inputs), (inputs, columns)
    elif gradient:
        kind, evaluate = "weight gradient", _gradient
        layout = (contracted, (*groups, *rows)), (contracted, (*groups, *columns))
        channels = (*groups, *columns, *rows)
    else:
        kind, evaluate = "convolution", _convolution
        layout = (rows, inputs), ((*groups, *columns), contracted)
    # a contracted index that the result carries has size one
    summed = tuple(j for j in contracted if j in network.output_indices)
    present = (*summed, *channels, *result_space)
    number = prod(sizes[index] for index in groups)

    arrange = arrangement(present, network.output, sizes)
    arrange_image, arrange_kernel = (
        arrangement(operand.indices, (*channels, *((index,) for index in space)), sizes)
        for operand, channels, space in (
            (roles.image, layout[0], image_space),
            (roles.kernel, layout[1], kernel_space),
        )
    )

    def compute(tensors: Tensors) -> Tensor:
        image = arrange_image(tensors[roles.image.name])
        kernel = arrange_kernel(tensors[roles.kernel.name])
        return arrange(evaluate(image, kernel, roles.dims, number))

    def run(tensors: Tensors, into: Accumulator) -> None:
        into.put(into.out, compute(tensors))

    cost = _cost(roles, sizes, present, target, gradient and not roles.transposed)
    call = Operation(kind, f"{roles.image.name} by {roles.kernel.name}", cost)
    held = _copied(roles.image, layout[0], sizes)
    held += _copied(roles.kernel, layout[1], sizes)
    copy = Operation("arrange", f"{held}", target.rates.move(held, target.itemsize, 16))
    operations = (copy, call) if held else (call,)
    return Candidate(f"native {kind}", operations, held, run, compute)


def _cost(
    roles: Roles,
    sizes: Mapping[str, int],
    present: Sequence[str],
    target: Target,
    gradient: bool,
) -> Cost:
    """Estimate the cost; many small groups are slow."""
    rates, groups = target.rates, prod(sizes[index] for index in roles.groups)
    channels = (*roles.rows, *roles.columns, *roles.contracted)
    flops = float(groups * prod(sizes[index] for index in channels))
    moved = target.itemsize * sum(
        prod(sizes[index] for index in carried)
        for carried in (roles.image.indices, roles.kernel.indices, present)
    )
    kernel = prod(dim.kernel for dim in roles.dims)
    outputs = prod(dim.outputs for dim in roles.dims)
    flops *= kernel * outputs
    rate = rates.native
    columns, rows = (
        prod(sizes[index] for index in own) for own in (roles.columns, roles.rows)
    )
    if groups > 1 and gradient and min(columns, rows) < _FEW_CHANNELS:
        rate = rates.native_depthwise
    elif groups > 1 and not gradient:  # fast if all sizes are large
        rate = 1.5 * rates.depthwise * kernel / (kernel + 100) * outputs / (outputs + 4)
        if max(outputs, columns) < _MANY_OUTPUTS:
            rate *= 0.3 if columns == 1 else 0.12
        few = min(columns, prod(sizes[index] for index in roles.contracted))
        if few > 1 and kernel <= LARGE_KERNEL:  # vectorised over a group's channels
            rate = max(rate, rates.native * few / (few + 16))
    elif gradient:  # slow for sums of few terms, and for few kernel entries
        rate *= kernel / (kernel + 16) * outputs / (outputs + 1)
        if groups > 1:  # few channels do not fill a vector
            few = min(columns, rows)
            rate *= few / (few + 1.5)
    elif kernel > LARGE_KERNEL:
        rate /= 2
    if gradient:  # it is parallel over samples and groups
        parts = groups * prod(sizes[index] for index in roles.contracted)
        rate *= parts / (parts + 0.3)
    # gradients copy operands and results to the kernel's layout and back
    copy = rates.cached_copy if moved <= rates.cache else rates.copy
    copies = 1.5 if gradient else 0.5
    seconds = flops / rate + copies * moved / copy + 4 * rates.call
    return Cost(flops, moved, 2 if gradient else 1, 0, seconds)


def _has_axis(operand: Operand, indices: Sequence[str]) -> bool:
    """Tell whether one of some indices has an axis to itself, like the batch."""
    own = [axis.position.indices for axis in operand.axes]
    return any((index,) in own for index in indices)


def _copied(
    operand: Operand, channels: Sequence[Sequence[str]], sizes: Mapping[str, int]
) -> int:
    """Count the elements that must be copied to merge channels."""
    indices = [index for index in operand.indices if sizes[index] > 1]
    merged_first = [j for axis in channels for j in axis if sizes[j] > 1]
    in_order = indices[: len(merged_first)] == merged_first
    carriers = [
        {n for n, own in enumerate(operand.axes) if {*axis} & {*own.position.indices}}
        for axis in ([j for j in axis if sizes[j] > 1] for axis in channels)
    ]
    if in_order and all(len(own) <= 1 for own in carriers):
        return 0
    return prod(sizes[index] for index in indices)


def _pad(image: Tensor, dims: Sequence[Geometry]) -> tuple[Tensor, list[int]]:
    """Pad or crop the image if torch cannot, because the sides differ."""
    if all(dim.fits for dim in dims):
        return image, [dim.left for dim in dims]
    sides = [side for dim in reversed(dims) for side in (dim.left, dim.right)]
    return F.pad(image, sides), [0] * len(dims)


def _convolution(
    image: Tensor, kernel: Tensor, dims: Sequence[Geometry], groups: int
) -> Tensor:
    stride, dilation = [d.stride for d in dims], [d.dilation for d in dims]
    if all(dim.nearly_fits for dim in dims):
        # computing a few more outputs is cheaper than a padded copy of the image
        padding = [dim.left for dim in dims]
        result = convolution(image, kernel, stride, padding, dilation, groups)
        for axis, dim in enumerate(dims, start=2):
            if result.shape[axis] > dim.outputs:
                result = result.narrow(axis, 0, dim.outputs)
        return result
    image, padding = _pad(image, dims)
    return convolution(image, kernel, stride, padding, dilation, groups)


def _gradient(
    image: Tensor, kernel: Tensor, dims: Sequence[Geometry], groups: int
) -> Tensor:
    # positions of this kernel are outputs of the convolution that is differentiated
    image, padding = _pad(image, [dim.swapped for dim in dims])
    return weight_gradient(
        image,
        kernel,
        [dim.outputs for dim in dims],
        [dim.dilation for dim in dims],
        [dim.stride for dim in dims],
        groups,
        padding,
    )


def _transposed(
    image: Tensor, kernel: Tensor, dims: Sequence[Geometry], groups: int
) -> Tensor:
    stride, dilation = [d.stride for d in dims], [d.dilation for d in dims]
    # torch crops the same on both sides, and adds a few positions on the right
    extra = [dim.left - dim.right for dim in dims]
    native = all(
        dim.left >= 0 and 0 <= more < max(dim.stride, dim.dilation)
        for dim, more in zip(dims, extra, strict=True)
    )
    if native:
        padding = [dim.left for dim in dims]
        return transposed_convolution(
            image, kernel, stride, padding, extra, dilation, groups
        )
    zeros = [0] * len(dims)
    full = transposed_convolution(image, kernel, stride, zeros, zeros, dilation, groups)
    sides = [-side for dim in reversed(dims) for side in (dim.left, dim.right)]
    return F.pad(full, sides)
