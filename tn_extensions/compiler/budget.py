"""How much memory a plan may hold beyond inputs and output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from tn_extensions.errors import describe

_DEFAULT = 256 * 2**20


@dataclass(frozen=True, eq=False)
class _Budget:
    """A limit in force, and the one around it."""

    limit: int
    outer: _Budget | None


_OWN: ContextVar[_Budget | None] = ContextVar("tn_extensions_budget", default=None)
_IN_FORCE: dict[_Budget, None] = {}
"""The limits of all threads."""


def current_budget() -> int:
    """The budget in force, in bytes."""
    own = _OWN.get()
    if own is not None:
        return own.limit
    budgets = list(_IN_FORCE)
    outer = {budget.outer for budget in budgets}
    inner = (budget.limit for budget in budgets if budget not in outer)
    return min(inner, default=_DEFAULT)


def slices(total: int, each: int) -> Iterator[slice]:
    """Cut a batch into parts of a 32nd of the budget: larger ones are no faster.

    Args:
        total: Length of the batch.
        each: Bytes that each of it takes.
    """
    step = max(1, current_budget() // 32 // max(1, each))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


@contextmanager
def memory_budget(limit: int) -> Iterator[None]:
    """Bound the memory that plans hold beyond inputs and outputs.

    Plans work in chunks that fit; a plan never fails for lack of budget but falls back
    to its smallest chunk (one sample). The default is 256 MiB. The budget also holds in
    threads that set none of their own, such as those in which autograd runs backward
    passes on GPUs; of budgets that several threads set, the smallest.

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
    budget = _Budget(limit, _OWN.get())
    token = _OWN.set(budget)
    _IN_FORCE[budget] = None
    try:
        yield
    finally:
        del _IN_FORCE[budget]
        _OWN.reset(token)
