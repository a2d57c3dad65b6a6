"""Kernels: sums over a box of positions at nonnegative lags, ``[G * C, lags, C']``.

The left operand is read at the positions of the box, ``[rows, counts..., G * C]``. The
right operand is read from the first to the last position that a lag leads to,
``[rows, reads..., G * C']``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod

from torch import Tensor

from tn_extensions.compiler.allocate import contiguous, empty
from tn_extensions.compiler.cost import Cost, Rates
from tn_extensions.compiler.lags import Box, first_lag, lags_of, number_of_lags
from tn_extensions.compiler.native import (
    MOST_DIMS,
    depthwise_convolution,
    weight_gradient,
)
from tn_extensions.compiler.product import multiply

_VECTOR = 16
"""Number of channels that native kernels process at a time."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A way of summing over a box.

    Args:
        name: Its name in plans.
        channels_last: Whether its operands are in channels-last layout.
        sums: Sums the products of a left and a right operand over a box, in groups.
        price: Estimates the cost, from rates, element size, box, rows, groups and
            channels.
        terms: Largest number of terms in a sum. The kernel adds terms one by one, and
            longer sums would lose digits.
        lines: Largest number of lines of terms in a sum, for the same reason.
        unfolds: Whether it holds a copy of the right operand for each lag.
    """

    name: str
    channels_last: bool
    sums: Callable[[Tensor, Tensor, Box, int], Tensor]
    price: Callable[[Rates, int, Box, int, int, int], Cost]
    terms: int
    lines: int
    unfolds: bool = False


def kernels(num_dims: int, channels: int, native: bool) -> tuple[Kernel, ...]:
    """List the kernels for a number of dimensions and of channels per group."""
    if not native or num_dims > MOST_DIMS:
        return (PRODUCT,)
    if channels == 1:
        return (DEPTHWISE,)
    return PRODUCT, GRADIENT, GRADIENT_CHANNELS_LAST


def pieces(box: Box, rows: int, terms: int, lines: int) -> list[tuple[slice, Box]]:
    """Cut rows and a box into parts of at most so many terms and lines of terms."""
    parts = [box]
    for axis, region in enumerate(box):
        cuts = ceil(max(_area(parts[0]) / terms, _area(parts[0][:-1]) / lines))
        size = ceil(region.count / min(cuts, region.count))
        parts = [
            (*part[:axis], region.part(begin, size), *part[axis + 1 :])
            for part in parts
            for begin in range(0, region.count, size)
        ]
    count = min(terms // _area(parts[0]), lines // _area(parts[0][:-1]))
    count = max(1, min(count, rows))
    return [
        (slice(start, start + count), part)
        for start in range(0, rows, count)
        for part in parts
    ]


def _area(box: Box) -> int:
    return prod(region.count for region in box)


def _multiply(left: Tensor, right: Tensor, box: Box, groups: int) -> Tensor:
    """Sum by a matrix product with the unfolded lags."""
    rows, *strides, channel = right.stride()
    lags, counts = [r.lags for r in box], [r.count for r in box]
    size, columns = left.shape[-1] // groups, right.shape[-1] // groups
    dims = len(box)
    shifted = right.as_strided(
        [len(right), *counts, groups, *lags, columns],
        [
            rows,
            *(s * r.step for s, r in zip(strides, box, strict=True)),
            channel * columns,
            *(s * r.spacing for s, r in zip(strides, box, strict=True)),
            channel,
        ],
        right.storage_offset(),
    )
    terms = len(left) * prod(counts)
    shape = (*shifted.shape[: dims + 2], number_of_lags(box), columns)
    unfolded = empty(shape, shifted)
    end = 0
    for part in lags_of(box):
        found = shifted[(*[slice(None)] * (dims + 2), *part)]
        begin, end = end, end + prod(found.shape[dims + 2 : -1])
        target = unfolded[..., begin:end, :]
        target.view(found.shape).copy_(found)
    unfolded = unfolded.view(terms, groups, -1)
    left = contiguous(left).view(terms, groups, size)
    value = multiply(left.permute(1, 2, 0), unfolded.permute(1, 2, 0))
    return value.view(groups * size, -1, columns)


def _price_product(
    rates: Rates, itemsize: int, box: Box, rows: int, groups: int, channels: int
) -> Cost:
    terms, columns = rows * _area(box), channels * number_of_lags(box)
    unfolded = rates.move(groups * columns * terms, itemsize, channels)
    return unfolded + rates.product(channels, columns, terms, groups, itemsize)


def _gradient(left: Tensor, right: Tensor, box: Box, groups: int) -> Tensor:
    """Sum by torch's weight gradient of a convolution, with a kernel entry per lag."""
    found = weight_gradient(
        right.movedim(-1, 1),
        left.movedim(-1, 1),
        [region.lags for region in box],
        [region.step for region in box],
        [region.spacing for region in box],
        groups,
    )
    return found.flatten(2)[..., first_lag(box) :].mT


def _price_gradient(
    rates: Rates, itemsize: int, box: Box, rows: int, groups: int, channels: int
) -> Cost:
    flops = float(groups * channels**2) * number_of_lags(box) * rows * _area(box)
    filled = channels / (_VECTOR * ceil(channels / _VECTOR))
    rate = max(
        rates.native * filled ** (1 if groups == 1 else 2), rates.native_depthwise
    )
    rate *= _area(box) / (_area(box) + 16)  # sums of few terms are slow
    return Cost(flops, 0, 1, 0, flops / rate + rates.call)


def _convolve(left: Tensor, right: Tensor, box: Box, groups: int) -> Tensor:
    """Sum by a depthwise convolution with the left operand's channels as kernels."""
    left, right = (x.movedim(-1, 1).contiguous().flatten(0, 1) for x in (left, right))
    found = depthwise_convolution(
        right,
        left,
        stride=[region.spacing for region in box],
        dilation=[region.step for region in box],
    )
    found = found.flatten(1)[:, first_lag(box) :]
    return found.unflatten(0, (-1, groups)).sum(0)[..., None]


def _price_depthwise(
    rates: Rates, itemsize: int, box: Box, rows: int, groups: int, channels: int
) -> Cost:
    lags = number_of_lags(box)
    flops = float(groups * rows * lags) * _area(box)
    # many lags keep the kernel's registers busy
    rate = rates.depthwise * min(3.0, max(1.0, lags / 25))
    read = groups * rows * prod(len(region.read) for region in box)
    moved = itemsize * (4.0 * read + 2.0 * groups * rows * lags)
    return Cost(
        flops, moved, 2, 0, flops / rate + moved / rates.cached_copy + 2 * rates.call
    )


_ANY = 2**62

PRODUCT = Kernel("matrix product", True, _multiply, _price_product, _ANY, _ANY, True)
GRADIENT = Kernel("weight gradient", False, _gradient, _price_gradient, 8192, 128)
GRADIENT_CHANNELS_LAST = Kernel(
    "weight gradient, channels last", True, _gradient, _price_gradient, 8192, 128
)
DEPTHWISE = Kernel(
    "depthwise convolution", True, _convolve, _price_depthwise, 1024, _ANY
)
