"""How much memory a plan may hold beyond inputs and output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tn_extensions.errors import describe

_BUDGET = ContextVar("tn_extensions_memory_budget", default=256 * 2**20)


def current_budget() -> int:
    """The budget in force, in bytes."""
    return _BUDGET.get()


@contextmanager
def memory_budget(limit: int) -> Iterator[None]:
    """Bound the memory that plans hold beyond inputs and outputs.

    Plans work in chunks that fit; a plan never fails for lack of budget but falls back
    to its smallest chunk (one sample). The default is 256 MiB.

    Args:
        limit: Budget in bytes.

    Raises:
        TypeError: If ``limit`` is not an int.
        ValueError: If ``limit`` is not positive.

    >>> with memory_budget(2**20):
    ...     current_budget()
    1048576
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        kind = type(limit).__name__
        raise TypeError(describe("memory_budget", "limit", "be an int of bytes", kind))
    if limit <= 0:
        raise ValueError(describe("memory_budget", "limit", "be positive", limit))
    token = _BUDGET.set(limit)
    try:
        yield
    finally:
        _BUDGET.reset(token)
