"""Memory: of results, and what tensors share."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Hashable, Sequence
from functools import lru_cache
from math import prod
from typing import Any

from torch import Tensor

from tn_extensions.compiler.tracing import holds_data, is_traced

_HUGE_PAGE = 2**21
_ALWAYS_FRESH = 2**25
"""Bytes from which on the C library returns memory to the system when it is freed.

Smaller blocks may lie in memory that has been touched before.
"""


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor of dtype and device of another one.

    The first touch of fresh memory is a page fault every 4 KiB, which takes several
    times as long as writing a large factor. Linux spares them if asked for pages of 2
    MiB; where it does not offer them, nothing changes.
    """
    result = like.new_empty(tuple(shape))
    advise = _madvise()
    if advise is not None and is_large(result):
        size = result.numel() * result.element_size()
        begin = result.data_ptr()
        first = -(-begin // _HUGE_PAGE) * _HUGE_PAGE
        last = (begin + size) // _HUGE_PAGE * _HUGE_PAGE
        if last > first:
            advise(first, last - first, mmap.MADV_HUGEPAGE)
    return result


def contiguous(tensor: Tensor) -> Tensor:
    """Make a tensor contiguous; a copy lies in memory like that of :func:`empty`."""
    if tensor.is_contiguous() or not is_large(tensor) or is_traced([tensor]):
        return tensor.contiguous()
    return empty(tensor.shape, tensor).copy_(tensor)


def reshaped(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Reshape a tensor; a copy, if it takes one, is as of :func:`contiguous`."""
    if not is_large(tensor) or is_traced([tensor]):
        return tensor.reshape(shape)
    try:
        return tensor.view(shape)
    except RuntimeError:  # its strides do not allow it
        return contiguous(tensor).view(shape)


def is_large(like: Tensor, shape: Sequence[int] | None = None) -> bool:
    """Tell whether memory of a tensor's size, or a shape's, is fresh on its device."""
    numel = like.numel() if shape is None else prod(shape)
    is_on_cpu = like.device.type == "cpu" and holds_data(like)
    return numel * like.element_size() > _ALWAYS_FRESH and is_on_cpu


def memory_of(tensor: Tensor) -> int:
    """Identify a tensor's memory, also that of a tensor without data."""
    storage = tensor.untyped_storage()
    return storage.data_ptr() if holds_data(tensor) else storage._cdata


def address_of(tensor: Tensor) -> Hashable:
    """Identify where a tensor begins in memory, also a tensor without data."""
    if holds_data(tensor):
        return tensor.data_ptr()
    return memory_of(tensor), tensor.storage_offset()


@lru_cache(maxsize=1)
def _madvise() -> Any:
    """The system call, or None where there is none."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    advise.restype = ctypes.c_int
    return advise
