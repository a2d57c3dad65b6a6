"""What does a call cost beyond its arithmetic: operators, idle threads, bookkeeping?

``python -m experiments.calls --help`` lists the options. Counts the operators of every
quantity; times calls against stock's while another process takes one of the cores; and
times what a cached call and a plan that is not cached take in Python. Writes JSON and,
beside it, a Markdown report.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from experiments import contenders, gradient_contenders, machine, storage
from experiments.bars import Verdict
from experiments.cases import COUNTED, QUANTITIES, Case, network_layers
from experiments.layers import Layer, select
from experiments.markdown import bar_rows, number, table
from experiments.measure import Call, medians, time_side_by_side
from experiments.plans import QUANTITIES as PLANNED_QUANTITIES
from experiments.records import measure_all
from tn_extensions import Conv
from tn_extensions.compiler.plan import forget_plans

RESULTS = Path(__file__).parent / "results"
LARGEST = 2**28
"""Elements of a result; the Toeplitz matrices of large layers have more."""
TINY = {
    "2-3x5 k3": Conv.make(2, 3, 3, (5, 5), 1, 1),
    "4x6 k3 depthwise": Conv.make(4, 4, 3, (6, 6), 1, 1, groups=4),
    "2-3x8 k3 s2": Conv.make(2, 3, 3, (8, 8), 2, 1),
}
"""Layers with next to no arithmetic."""
LOADED = ("64-64x56-k3", "128-128x28-k3", "256-256x14-k3", "512-512x7-k3", "96-96x32")
"""Layers that are timed while a core is busy, as their names begin."""


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


def count(case: Case) -> dict[str, Any]:
    """Count the operators of a call, views apart."""
    names = [(str(f), f.is_view) for f, *_ in record(case.call(case.tensors())).calls]
    operators = Counter(name for name, is_view in names if not is_view)
    return {
        "operators": operators.total(),
        "views": len(names) - operators.total(),
        "most_common": dict(operators.most_common(4)),
    }


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


def compare_under_load(quantity: str, layer: Layer, rounds: int) -> dict[str, Any]:
    """Time a call and stock's while one of the cores is busy."""
    num_vectors = 10 if quantity.startswith("ggn") else None
    case = gradient_contenders.make_case(layer, 8, num_vectors)
    calls: dict[str, Call]
    if quantity.startswith("kfac"):
        kind: Any = quantity.removeprefix("kfac_")
        of_kind = contenders.CONTENDERS[kind]
        calls = {
            name: of_kind[name](case.module, case.x) for name in ("ours", "unfold")
        }
    else:
        # the first of the others is the toolkit's default
        some = list(gradient_contenders.CONTENDERS[quantity].items())[:2]
        calls = {name: partial(compute, case) for name, compute in some}
    with one_core_busy():
        ours, stock = medians(time_side_by_side(calls, rounds)).values()
    return {"seconds": ours, "stock_seconds": stock, "ratio": stock / ours}


def time_bookkeeping(case: Case, rounds: int) -> dict[str, Any]:
    """Time a cached call, and its operators alone."""
    call = case.call(case.tensors())
    calls = {"call": call, "operators": record(call).replay}
    seconds = medians(time_side_by_side(calls, rounds, min_seconds=2e-2))
    beyond = seconds["call"] - seconds["operators"]
    return {"seconds": seconds["call"], "beyond_seconds": beyond}


def time_planning(case: Case) -> dict[str, Any]:
    """Time a plan that is not cached."""
    forget_plans()
    start = time.perf_counter()
    case.plan()
    return {"seconds": time.perf_counter() - start}
