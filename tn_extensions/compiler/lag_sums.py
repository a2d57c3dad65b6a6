"""Sums over a box of positions, at all of its lags at once.

Large boxes are a native weight gradient, channels last: it is faster so, and sums more
accurately. Along the borders, where that kernel is slow, lags are unfolded.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

from torch import Tensor

from tn_extensions.compiler.boxes import Region
from tn_extensions.compiler.native import weight_gradient
from tn_extensions.compiler.product import multiply

_TERMS = 4096
_LINES = 64
"""Terms, and lines of them, that the native kernel adds up at a time.

It adds up lines one by one, so long sums lose digits.
"""

_PART_BYTES = 3 * 2**19
"""Lag sums that the native kernel computes at a time: more outgrow its cache."""

_THIN = 8
"""Positions of a dimension below which lags are unfolded and multiplied instead."""


def is_thin(regions: Sequence[Region]) -> bool:
    """Whether a box is a border, on which the native kernel is slow."""
    return min(region.count for region in regions) < _THIN


def pieces(box: Sequence[Region], rows: int) -> list[tuple[slice, list[Region]]]:
    """Parts of some rows, and of the first region, that are short enough to sum."""
    first, *others = box
    if is_thin(box):
        return [(slice(0, rows), list(box))]
    area, lines = prod(r.count for r in box), prod(r.count for r in box[:-1])
    cuts = max(ceil(area / _TERMS), ceil(lines / (2 * _LINES)))
    size = ceil(first.count / cuts)
    count = max(1, min(_TERMS // area, _LINES // lines))
    return [
        (slice(start, start + count), [first.part(begin, size), *others])
        for start in range(0, rows, count)
        for begin in range(0, first.count, size)
    ]


def sum_box(left: Tensor, right: Tensor, box: Sequence[Region], groups: int) -> Tensor:
    """Sums over a box, ``[G, C, C', lags...]``.

    Args:
        left: The operand at the positions of the box, ``[rows, counts..., G * C]``.
        right: The operand from the first to the last position that a lag leads to,
            ``[rows, reads..., G * C']``.
        box: The region of each dimension.
        groups: Number ``G`` of groups of channels that do not meet.
    """
    evaluate = _product if is_thin(box) else _native
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
