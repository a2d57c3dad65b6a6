"""Memory: allocate results, and identify the memory of tensors."""

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
"""Size in bytes above which the C library returns freed memory to the system.

Smaller blocks may be in memory that has been used before.
"""


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Make an uninitialised tensor with the dtype and device of another one.

    The first access to fresh memory causes a page fault every 4 KiB, which takes
    several times as long as writing a large factor. On Linux, ask for pages of 2 MiB
    instead; elsewhere nothing changes.
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
    """Make a tensor contiguous; allocate a copy by :func:`empty`."""
    if tensor.is_contiguous() or not is_large(tensor) or is_traced([tensor]):
        return tensor.contiguous()
    return empty(tensor.shape, tensor).copy_(tensor)


def reshaped(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Reshape a tensor; if that takes a copy, allocate it by :func:`empty`."""
    if not is_large(tensor) or is_traced([tensor]):
        return tensor.reshape(shape)
    try:
        return tensor.view(shape)
    except RuntimeError:  # its strides do not allow it
        return contiguous(tensor).view(shape)


def is_large(like: Tensor, shape: Sequence[int] | None = None) -> bool:
    """Tell whether a tensor of this size, or of a given shape, gets fresh memory."""
    numel = like.numel() if shape is None else prod(shape)
    is_on_cpu = like.device.type == "cpu" and holds_data(like)
    return numel * like.element_size() > _ALWAYS_FRESH and is_on_cpu


def memory_of(tensor: Tensor) -> int:
    """Identify the memory of a tensor, even of a tensor without data."""
    storage = tensor.untyped_storage()
    return storage.data_ptr() if holds_data(tensor) else storage._cdata


def address_of(tensor: Tensor) -> Hashable:
    """Identify where a tensor begins in memory, even a tensor without data."""
    if holds_data(tensor):
        return tensor.data_ptr()
    return memory_of(tensor), tensor.storage_offset()


@lru_cache(maxsize=1)
def _madvise() -> Any:
    """Return the system call, or None where it does not exist."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    advise.restype = ctypes.c_int
    return advise
