"""What does a call cost beyond its arithmetic: operators, idle threads, bookkeeping?

``python -m experiments.calls --help`` lists the options. Counts the operators of every
quantity, times calls and stock's while another process takes one of the cores, and
times what cached calls and plans that are not cached take in Python. Writes JSON and,
beside it, a Markdown report.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from experiments.cases import Case

MOST_OPERATORS, MOST_VIEWS = 50, 200
"""Bars on a call."""


class Recorder(TorchDispatchMode):
    """Records the operators that torch is asked for, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def count(case: Case) -> dict[str, Any]:
    """Count the operators of a call, views apart; a record for the JSON file."""
    call = case.call(case.tensors())
    call()  # what is called once per process does not count
    with Recorder() as recorder:
        call()
    views = sum(func.is_view for func, _, _ in recorder.calls)
    others = Counter(
        str(f).removeprefix("aten.") for f, _, _ in recorder.calls if not f.is_view
    )
    return {
        "layer": case.layer,
        "quantity": case.quantity,
        "operators": others.total(),
        "views": views,
        "most_common": dict(others.most_common(4)),
    }
