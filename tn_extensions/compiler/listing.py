"""Lists of the plans that run, in an operator, an extension or an optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

from tn_extensions.compiler.plan import Plan, listeners
from tn_extensions.compiler.table import in_a_line, milli, ruled

_OWN: ContextVar[frozenset[int]] = ContextVar(
    "tn_extensions_plans", default=frozenset()
)
"""Ids of the lists that this thread has opened."""


class Plans(dict[Plan, int]):
    """Plans in the order of their first run, with the number of runs; print it."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = Lock()

    def note(self, plan: Plan) -> None:
        """Count a run, unless its thread has only opened other lists."""
        own = _OWN.get()
        if not own or id(self) in own:
            with self._lock:
                self[plan] = self.get(plan, 0) + 1

    def __str__(self) -> str:
        head = ("plan", "candidate", "runs", "estimated ms", "measured ms")
        rows = []
        for plan, runs in self.items():
            name, seconds = plan.candidate.name, plan.cost.seconds
            measured = plan.measured.get(plan.candidate.label)
            times = (milli(seconds), "" if measured is None else milli(measured))
            rows.append((in_a_line(plan.network), name, str(runs), *times))
        total = sum(runs * plan.cost.seconds for plan, runs in self.items())
        counts = f"{len(self)} plan(s), {sum(self.values())} run(s)"
        table = ruled(head, rows, text_columns=2)
        return "\n".join([f"{counts}, estimated {milli(total)} ms", *table])

    __repr__ = __str__


@contextmanager
def plans() -> Iterator[Plans]:
    """List the plans that run within this context.

    Runs in other threads count unless those threads list plans themselves. So the list
    includes backward passes on GPUs, which autograd runs in its own threads.

    Yields:
        The list, which fills while plans run.

    >>> from tn_extensions import Conv, quantities
    >>> import torch
    >>> network = quantities.kfac_expand(Conv.make(1, 1, 2, 3), 2)
    >>> with plans() as used:
    ...     _ = [network.evaluate(x=torch.rand(2, 1, 3)) for _ in range(3)]
    >>> [(plan.network.shape, runs) for plan, runs in used.items()]
    [((1, 2, 2), 3)]
    """
    used = Plans()
    token = _OWN.set(_OWN.get() | {id(used)})
    listeners.append(used.note)
    try:
        yield used
    finally:
        listeners.remove(used.note)
        _OWN.reset(token)
