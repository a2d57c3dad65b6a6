"""Pixel: sum the pixels' Gram matrix along its diagonals, which gives the patches'.

Pairs over a summed term ``k`` join the halves of such a network. The result is ``sum_k
A[i(o, k), i(o', k)]``, where ``A`` is the pixels' Gram matrix, one dimension at a time.
The Gram matrix of the unfolded input would take ``K`` times as many multiply-adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.candidate import Candidate, Operation, Target, Tensors
from tn_extensions.compiler.half import Half
from tn_extensions.network import Pattern, TensorNetwork
from tn_extensions.network.index import prime


@dataclass(frozen=True, slots=True)
class Shift:
    """The results, and the pixels they read, for one value of the summed index."""

    result: slice
    pixels: slice


def shifts(
    pattern: Pattern, read: str, free: str, size: int, sizes: dict[str, int]
) -> list[Shift] | None:
    """Return a pattern's shift for each value of its summed index; None without shifts.

    With a shift, result or pixel is the other one times a stride, plus an offset.
    """
    hit = pattern.index
    if hit not in (read, free) or pattern.summed or len(pattern.indices) != 3:
        return None
    other = free if hit == read else read
    (summed,) = (j for j in pattern.position.indices if j != other)
    stride, step = pattern.position.stride(other), pattern.position.stride(summed)
    found = []
    for value in range(size):
        at = pattern.position.start + step * value
        low = max(-(at // stride), 0)
        high = min((sizes[hit] - 1 - at) // stride + 1, sizes[other])
        if low >= high:
            continue
        begin, end = at + stride * low, at + stride * (high - 1) + 1
        ends = slice(begin, end, stride), slice(low, high)
        found.append(Shift(*(ends if hit == free else ends[::-1])))
    return found


def pixel(network: TensorNetwork, target: Target) -> Iterable[Candidate]:
    """Sum along the diagonals of the pixels' Gram matrix."""
    half = Half.of(network)
    if half is None or not half.is_joined or half.patterns:
        return
    sizes, read, found = dict(network.sizes), {}, []
    for dim in half.dims:
        patterns = (dim.pair.first, dim.pair.second)
        (pattern,) = (p for p in patterns if dim.read in p.indices)
        assert dim.free is not None
        own = shifts(pattern, dim.read, dim.free, dim.pair.size, sizes)
        if own is None or dim.free not in half.columns:
            return
        read[dim.free] = dim.read
        found.append((half.columns.index(dim.free), own))
    columns = tuple(read.get(index, index) for index in half.columns)
    copies = tuple(map(prime, columns))
    pixels = target.best(
        TensorNetwork(network.operands, (half.batch, columns, copies), sizes)
    )
    groups = prod(sizes[index] for index in half.batch)
    split = [sizes[index] for index in columns]
    results = [sizes[index] for index in half.columns]

    def compute(tensors: Tensors) -> Tensor:
        value = pixels.value(tensors).view(groups, *split, *split)
        for axis, own in found:
            value = sum_shifts(value, axis + 1, len(split), results[axis], own)
        return value.reshape(network.shape)

    def run(tensors: Tensors, into: Accumulator) -> None:
        into.put(into.out, compute(tensors))

    elements = held = groups * prod(split) ** 2
    operations = list(pixels.operations)
    for axis, own in found:
        elements = elements // split[axis] ** 2 * results[axis] ** 2
        held = max(held, 2 * elements)
        cost = target.rates.move(elements, target.itemsize, results[-1])
        name = f"sum along diagonals, {len(own)} shifts"
        operations.append(Operation(name, f"{elements}", cost, 1 + len(own)))
    yield Candidate(
        f"pixel({pixels.name})",
        tuple(operations),
        held + pixels.peak,
        run,
        compute,
        pixels.differentiable,
    )


def sum_shifts(
    value: Tensor, axis: int, distance: int, size: int, own: Sequence[Shift]
) -> Tensor:
    """Sum shifted windows of two axes, which are ``distance`` apart."""
    shape = list(value.shape)
    shape[axis] = shape[axis + distance] = size
    result = value.new_zeros(shape)

    def at(tensor: Tensor, where: slice) -> Tensor:
        chosen = [slice(None)] * tensor.dim()
        chosen[axis] = chosen[axis + distance] = where
        return tensor[tuple(chosen)]

    for shift in own:
        at(result, shift.result).add_(at(value, shift.pixels))
    return result
