"""What does a call cost beyond its arithmetic?

Each operator is a launch on a GPU, and wakes threads on a CPU: so operators of a call
are counted, views apart. With one core kept *busy* by another process, each parallel
region waits for a thread that has lost its core, and who has few regions wins. The time
of a cached call *beyond its operators* is what Python takes, on layers with next to no
arithmetic. A *plan* that is not cached is what the first call of a layer waits for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.contenders.quantities import (
    MAIN,
    QUANTITIES,
    SMALL,
    VARIOUS,
    Asked,
    contest,
)
from experiments.harness.case import Case, Options, Row
from experiments.harness.measure import Call, medians, time_side_by_side
from experiments.harness.question import Claim, Question
from experiments.harness.ratios import Ratio
from experiments.subjects.layers import NETWORKS, Layer, layers_of
from tn_extensions import Conv
from tn_extensions.compiler.plan import forget_plans

_TINY = (
    SMALL,
    Layer("small", Conv.make(4, 4, 3, (6, 6), 1, 1, groups=4)),
    Layer("small", Conv.make(2, 3, 3, (8, 8), 2, 1)),
)
BUSY = Ratio(("quantity", "layer"))
"""Stock's times over ours while a core is busy."""


class Recorder(TorchDispatchMode):
    """Record the operators that torch is asked for, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def replay(self) -> None:
        """Call the operators again."""
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def record(call: Call) -> Recorder:
    """Record a call's operators, without what is called once per process."""
    call()
    with Recorder() as recorder:
        call()
    return recorder


def count(call: Call) -> Row:
    """Count the operators of a call, views apart."""
    names = [(str(func), func.is_view) for func, *_ in record(call).calls]
    operators = Counter(name for name, is_view in names if not is_view)
    return {
        "operators": operators.total(),
        "views": len(names) - operators.total(),
        "most_common": str(dict(operators.most_common(3))),
    }


def cases(options: Options) -> Iterator[Case]:
    """List what is counted, timed under load, timed in Python, and planned."""
    quick = options.quick
    counted = [name for name in QUANTITIES if name != "unfold_weight"]  # too large
    planned = [x for name in NETWORKS for x in layers_of(name)]
    parts: dict[str, tuple[Any, Any, Callable[..., Iterator[Row]]]] = {
        "operators": ((SMALL,) if quick else VARIOUS, counted, _counted),
        "busy core": ((SMALL,) if quick else VARIOUS[1:6], MAIN, _under_load),
        "bookkeeping": (_TINY[: 1 if quick else 3], QUANTITIES, _bookkeeping),
        "planning": ((SMALL,) if quick else planned, MAIN, _planned),
    }
    for part, (layers, quantities, rows) in parts.items():
        for layer in layers:
            for quantity in quantities:
                size, number = (2, 2) if part == "bookkeeping" else (8, 10)
                asked = Asked(quantity, layer, size, number)
                yield Case({"part": part, **asked.key}, rows, asked)


@torch.no_grad()
def _counted(asked: Asked, options: Options) -> Iterator[Row]:
    yield count(asked.call(asked.tensors(options.device)))


def _under_load(asked: Asked, options: Options) -> Iterator[Row]:
    own = contest(asked, options.device, ("stock", "ours"), weighed=False)
    with one_core_busy():
        yield from own.rows(options)


@contextmanager
def one_core_busy() -> Iterator[None]:
    """Keep one of the cores busy by another process."""
    core = max(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@torch.no_grad()
def _bookkeeping(asked: Asked, options: Options) -> Iterator[Row]:
    """Time a cached call, and its operators alone, by this thread's clock."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, waiting for others would count
    try:
        call = asked.call(asked.tensors(options.device))
        calls = {"call": call, "operators": record(call).replay}
        times = time_side_by_side(
            calls, options.rounds, min_seconds=5e-3, clock=time.thread_time
        )
    finally:
        torch.set_num_threads(threads)
    seconds = medians(times)
    beyond = seconds["call"] - seconds["operators"]
    yield {"seconds": seconds["call"], "beyond_seconds": beyond}


def _planned(asked: Asked, options: Options) -> Iterator[Row]:
    """Time a plan that is not cached, by this thread's clock."""
    seconds = []
    for _ in range(3):
        forget_plans()
        start = time.thread_time()
        asked.plan(options.device)
        seconds.append(time.thread_time() - start)
    yield {"seconds": median(seconds)}


_SHOWN: dict[str, tuple[str, str, float]] = {
    "Operators of a call": ("operators", "operators", 1),
    "Microseconds beyond the operators": ("bookkeeping", "beyond_seconds", 1e6),
    "Milliseconds of a plan": ("planning", "seconds", 1e3),
}
"""Titles of tables: the part and the column that they show, and its unit."""


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Show the worst calls of each part."""
    index = ["quantity", "network", "layer"]
    busy = BUSY.of(rows[rows["part"] == "busy core"])
    found = {"One core busy: time of stock over ours": busy.unstack(0)}
    for title, (part, column, factor) in _SHOWN.items():
        own = rows[rows["part"] == part].set_index(index)[column] * factor
        worst = own.nlargest(15).to_frame(title.partition(" ")[0].lower())
        found[f"{title}: the {len(worst)} largest of {len(own)}"] = worst
    return found


def _largest(part: str, column: str, factor: float) -> Callable[[Any], float]:
    return lambda rows: rows[rows["part"] == part][column].max() * factor


QUESTION = Question(
    __doc__,
    cases,
    tables,
    claims=(
        *(
            Claim(text, _largest(part, column, factor), "at most", limit)
            for text, (part, column, factor), limit in (
                ("Operators", ("operators", "operators", 1), 50),
                ("Views", ("operators", "views", 1), 200),
                (
                    "Microseconds of a cached call beyond its operators",
                    ("bookkeeping", "beyond_seconds", 1e6),
                    60,
                ),
                ("Milliseconds of a plan", ("planning", "seconds", 1e3), 100),
            )
        ),
        BUSY.claim("One core busy: stock over ours, worst", 1, "part == 'busy core'"),
    ),
)
