"""The memory budget: what a plan may hold beyond inputs and output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from tn_extensions.errors import describe

_DEFAULT = 256 * 2**20


@dataclass(frozen=True, eq=False)
class _Budget:
    """A limit in force, and the limit of the enclosing block."""

    limit: int
    outer: _Budget | None


_OWN: ContextVar[_Budget | None] = ContextVar("tn_extensions_budget", default=None)
_IN_FORCE: dict[_Budget, None] = {}
"""The limits of all threads."""


def current_budget() -> int:
    """Return the budget in force, in bytes."""
    own = _OWN.get()
    if own is not None:
        return own.limit
    budgets = list(_IN_FORCE)
    outer = {budget.outer for budget in budgets}
    inner = (budget.limit for budget in budgets if budget not in outer)
    return min(inner, default=_DEFAULT)


def slices(total: int, each: int) -> Iterator[slice]:
    """Cut a batch into parts of 1/32 of the budget; larger parts are no faster.

    Args:
        total: Length of the batch.
        each: Bytes per entry of the batch.

    Yields:
        The slices.
    """
    step = max(1, current_budget() // 32 // max(1, each))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


@contextmanager
def memory_budget(limit: int) -> Iterator[None]:
    """Limit the memory that plans hold beyond inputs and outputs.

    Plans work in chunks that fit. If not even the smallest chunk (one sample) fits, the
    plan uses it all the same; no plan fails because of its budget. The default is 256
    MiB. The budget also applies to threads that set none themselves, such as those in
    which autograd runs backward passes on GPUs. If several threads set budgets, the
    smallest one applies there.

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
        rule = "be a number of bytes, an int"
        raise TypeError(describe("memory_budget", "limit", rule, kind))
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
