"""Matrix products by the faster of the libraries that torch ships.

On CPUs that MKL does not favour, oneDNN's float32 products are about twice as fast, but
need contiguous operands. If either matrix has few rows, both libraries sum the terms
one by one. Such products are cut into pieces of so few terms that float32 sums stay
accurate.
"""

from __future__ import annotations

from functools import lru_cache
from time import perf_counter

import torch
from torch import Tensor

from tn_extensions.compiler.allocate import contiguous, empty, is_large
from tn_extensions.compiler.tracing import holds_data, is_traced

_SMALL = 2**19
"""Multiply-adds below which the overhead of a call dominates."""

FEW = 64
"""Terms below which writing a result twice takes longer than the product."""

_THIN = 16
"""Numbers of rows, columns or terms below which oneDNN is not used."""

_AT_ONCE = 256
"""Terms that may be summed one by one in float32, with an error of about 1e-6."""

WORTH_COPYING = 100
"""Multiply-adds per copied element above which contiguous copies pay."""


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Multiply ``left @ right^T``, of shapes ``[..., M, R]`` and ``[..., P, R]``."""
    if left.dim() == 3 and left.shape[0] == 1:  # a batch of one would be slower
        return multiply(left[0], right[0])[None]
    if sums_one_by_one(left, right):
        return _in_pieces(left, right)
    if not uses_onednn(left, right, fewest=_THIN):
        return _into_new(left, right.mT)
    one = contiguous(left)
    return _onednn(one, one if right is left else contiguous(right))


def _into_new(left: Tensor, right: Tensor) -> Tensor:
    """Multiply ``left @ right``; allocate large results by :func:`empty`."""
    shape = (*left.shape[:-1], right.shape[-1])
    if not is_large(left, shape) or is_traced((left, right)):
        return left @ right
    if left.shape[:-2] != right.shape[:-2]:  # broadcast
        return left @ right
    return torch.matmul(left, right, out=empty(shape, left))


def sums_one_by_one(left: Tensor, right: Tensor) -> bool:
    """Tell whether a CPU's library would lose digits of this float32 product."""
    if left.dtype != torch.float32:
        return False
    if not needs_pieces(left.shape[-2], right.shape[-2], left.shape[-1]):
        return False
    return left.device.type == "cpu"


def needs_pieces(rows: int, columns: int, terms: int) -> bool:
    """Tell whether a float32 product of these sizes would lose digits on CPUs.

    If either matrix has few rows, libraries sum all terms one by one.
    """
    return min(rows, columns) < _THIN and terms > 2 * _AT_ONCE


def _in_pieces(left: Tensor, right: Tensor) -> Tensor:
    """Multiply as a sum of products with fewer terms."""
    end = left.shape[-1] // _AT_ONCE * _AT_ONCE
    pieces = [
        each[..., :end].unflatten(-1, (-1, _AT_ONCE)).movedim(-2, 0)
        for each in (left, right)
    ]
    total = (pieces[0] @ pieces[1].mT).sum(0)
    if end < left.shape[-1]:
        total = total + left[..., end:] @ right[..., end:].mT
    return total


def uses_onednn(left: Tensor, right: Tensor, fewest: int = FEW) -> bool:
    """Tell whether oneDNN is better for a product, of at least ``fewest`` terms."""
    # the cheapest tests come first: small products are called most often
    if left.dim() != 2 or left.dtype != torch.float32 or not holds_data(left):
        return False
    (rows, terms), columns = left.shape, right.shape[0]
    if terms < fewest or rows * columns * terms < _SMALL:
        return False
    if min(rows, columns) < _THIN:
        return False
    if left.device.type != "cpu" or is_traced((left, right)) or not _prefers_onednn():
        return False
    if left.is_contiguous() and right.is_contiguous():
        return True
    copied = rows if right is left else rows + columns
    return rows * columns >= WORTH_COPYING * copied


def _onednn(left: Tensor, right: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(
        left, right, None, "none", [], ""
    )
    return result


@lru_cache(maxsize=1)
def _prefers_onednn() -> bool:
    """Tell whether oneDNN is faster on a small product; tried once per process."""
    if not torch.backends.mkldnn.is_available():
        return False
    square = torch.ones(256, 256)
    try:
        _onednn(square, square)
    except (AttributeError, RuntimeError):  # not in every build of torch
        return False

    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(9):  # in turns, as other processes may be running, too
        for onednn, found in times.items():
            start = perf_counter()
            _onednn(square, square) if onednn else square @ square.mT
            found.append(perf_counter() - start)
    return min(times[True]) < 0.8 * min(times[False])
