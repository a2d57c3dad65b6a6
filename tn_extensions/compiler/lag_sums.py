"""Sums over a box of positions, at all of its lags at once.

Large boxes are a native weight gradient, channels last: it is faster so, and sums more
accurately. Along the borders, where that kernel is slow, lags are unfolded.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

from torch import Tensor

from tn_extensions.compiler.lags import Region
from tn_extensions.compiler.native import weight_gradient
from tn_extensions.compiler.product import multiply

_TERMS = 4096
_LINES = 64
"""Terms, and lines of them, that the native kernel should add up at a time.

It adds up lines one by one, so long sums lose digits. A single sample may have twice as
many lines.
"""

_PART_BYTES = 3 * 2**19
"""Lag sums that the native kernel computes at a time: more outgrow its cache."""

_THIN = 8
"""Positions of a dimension below which lags are unfolded and multiplied instead."""


def is_thin(regions: Sequence[Region]) -> bool:
    """Whether a box is a border, on which the native kernel is slow."""
    return min(region.count for region in regions) < _THIN


def pieces(box: Sequence[Region], rows: int) -> list[tuple[slice, list[Region]]]:
    """Parts of some rows, and of a box, that are short enough for the native kernel."""
    parts = [list(box)]
    for axis, region in enumerate(box):
        cuts = ceil(max(_area(parts[0]) / _TERMS, _lines(parts[0]) / (2 * _LINES)))
        size = max(_THIN, ceil(region.count / cuts))
        parts = [
            [*part[:axis], region.part(begin, size), *part[axis + 1 :]]
            for part in parts
            for begin in range(0, region.count, size)
        ]
    count = max(1, min(_TERMS // _area(parts[0]), _LINES // _lines(parts[0])))
    return [
        (slice(start, start + count), part)
        for start in range(0, rows, count)
        for part in parts
    ]


def _area(box: Sequence[Region]) -> int:
    return prod(region.count for region in box)


def _lines(box: Sequence[Region]) -> int:
    return _area(box[:-1])


def sum_box(
    left: Tensor, right: Tensor, box: Sequence[Region], groups: int, thin: bool
) -> Tensor:
    """Sums over a box, ``[G, C, C', lags...]``.

    Args:
        left: The operand at the positions of the box, ``[rows, counts..., G * C]``.
        right: The operand from the first to the last position that a lag leads to,
            ``[rows, reads..., G * C']``.
        box: The region of each dimension.
        groups: Number ``G`` of groups of channels that do not meet.
        thin: Whether to unfold the lags, see :func:`is_thin`.
    """
    evaluate = _product if thin else _native
    return evaluate(left, right, box, groups)


def _product(
    left: Tensor, right: Tensor, regions: Sequence[Region], groups: int
) -> Tensor:
    """Sums over a box by a matrix product with the lags unfolded."""
    rows, *strides, channel = right.stride()
    lags, counts = ([r.lags for r in regions], [r.count for r in regions])
    # [rows, read..., G * C'] -> [G, lags..., C', rows, positions...]
    size, columns = left.shape[-1] // groups, right.shape[-1] // groups
    shifted = right.as_strided(
        [groups, *lags, columns, right.shape[0], *counts],
        [
            channel * columns,
            *(s * r.spacing for s, r in zip(strides, regions, strict=True)),
            channel,
            rows,
            *(s * r.step for s, r in zip(strides, regions, strict=True)),
        ],
        right.storage_offset(),
    )
    terms = len(left) * prod(counts)
    # terms first in memory, as they come
    order = [len(lags) + 2, *range(len(lags) + 3, shifted.dim()), *range(len(lags) + 2)]
    shifted = shifted.permute(order).reshape(terms, groups, -1)
    left = left.reshape(terms, groups, size)
    value = multiply(left.permute(1, 2, 0), shifted.permute(1, 2, 0))
    return value.view(groups, size, *lags, columns).movedim(-1, 2)


def _native(
    left: Tensor, right: Tensor, regions: Sequence[Region], groups: int
) -> Tensor:
    """Sums over a box by the native kernel."""
    geometry = (
        [region.lags for region in regions],
        [region.step for region in regions],
        [region.spacing for region in regions],
        groups,
    )
    left, right = left.movedim(-1, 1), right.contiguous().movedim(-1, 1)
    rows, columns = left.shape[1], right.shape[1] // groups
    entry = columns * prod(geometry[0]) * left.element_size()
    parts = ceil(rows * entry / _PART_BYTES) if groups == 1 else 1
    if parts == 1:
        sums = weight_gradient(right, left, *geometry)
    else:
        sums = left.new_empty(rows, *geometry[0], columns).movedim(-1, 1)
        for part, out in zip(
            left.chunk(parts, dim=1), sums.chunk(parts, dim=0), strict=True
        ):
            out.copy_(weight_gradient(right, part, *geometry))
    return sums.unflatten(0, (groups, -1))
