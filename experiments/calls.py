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
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from experiments import contenders, gradient_contenders, machine, storage
from experiments.bars import Aim, Verdict
from experiments.cases import COUNTED, QUANTITIES, Case, network_layers
from experiments.layers import Layer, select
from experiments.markdown import bar_rows, number, table
from experiments.measure import Call, medians, number_of_rounds, time_side_by_side
from experiments.plans import QUANTITIES as PLANNED_QUANTITIES
from experiments.records import measure_all
from tn_extensions import Conv
from tn_extensions.compiler.plan import forget_plans

RESULTS = Path(__file__).parent / "results"
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
    """Time a cached call, and its operators alone, by this thread's clock."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, waiting for others would count
    try:
        call = case.call(case.tensors())
        calls = {"call": call, "operators": record(call).replay}
        times = time_side_by_side(
            calls, rounds, min_seconds=5e-3, clock=time.thread_time
        )
    finally:
        torch.set_num_threads(threads)
    seconds = medians(times)
    beyond = seconds["call"] - seconds["operators"]
    return {"seconds": seconds["call"], "beyond_seconds": beyond}


def time_planning(case: Case) -> dict[str, Any]:
    """Time a plan that is not cached, by this thread's clock."""
    seconds = []
    for _ in range(3):
        forget_plans()
        start = time.thread_time()
        case.plan()
        seconds.append(time.thread_time() - start)
    return {"seconds": median(seconds)}


class Row(NamedTuple):
    """Something to measure.

    Args:
        question: One of :data:`QUESTIONS`.
        layer: Name of the layer.
        quantity: The quantity.
        measure: Measures it.
    """

    question: str
    layer: str
    quantity: str
    measure: Callable[[], dict[str, Any]]

    @property
    def title(self) -> str:
        """In a line."""
        return f"{self.question}: {self.quantity}, {self.layer}"

    def parts(self) -> Iterator[dict[str, Any]]:
        """Measure; the parts of a record."""
        yield {"question": self.question}
        yield {"layer": self.layer, "quantity": self.quantity, **self.measure()}


def rows(rounds: int) -> Iterator[Row]:
    """List what is measured, question by question."""
    for name, conv in COUNTED.items():
        for quantity in QUANTITIES:
            case = Case(name, conv, quantity)
            if quantity != "unfold_weight":  # larger than the memory
                yield Row("operators", name, quantity, partial(count, case))
    for layer in select(list(LOADED)):
        for quantity in PLANNED_QUANTITIES:
            measure = partial(compare_under_load, quantity, layer, rounds)
            yield Row("load", layer.name, quantity, measure)
    for name, conv in TINY.items():
        for quantity in QUANTITIES:
            case = Case(name, conv, quantity, batch_size=2, num_vectors=2)
            measure = partial(time_bookkeeping, case, rounds)
            yield Row("bookkeeping", name, quantity, measure)
    for name, conv in network_layers():
        for quantity in PLANNED_QUANTITIES:
            measure = partial(time_planning, Case(name, conv, quantity))
            yield Row("planning", name, quantity, measure)


class Bar(NamedTuple):
    """A bar on each record of a question.

    Args:
        question: One of those that :func:`rows` lists.
        text: The bar in words.
        field: What is limited.
        aim: Whether from above.
        limit: The limit, in the units of the report.
        unit: Of the report, in those of the field.
    """

    question: str
    text: str
    field: str
    aim: Aim
    limit: float
    unit: float = 1.0

    def judge(self, records: Sequence[dict[str, Any]]) -> Verdict:
        """Compare the worst record with it."""
        values = [
            (record[self.field] / self.unit, record["title"])
            for record in self.of(records)
        ]
        worst = min if self.aim == "at least" else max
        value, title = worst(values, default=(None, None))
        return Verdict(self.text, self.aim, self.limit, value, title)

    def of(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Select the records that it limits."""
        return [
            record
            for record in records
            if record.get("question") == self.question and self.field in record
        ]


BARS = (
    Bar("operators", "operators of a call", "operators", "at most", 50),
    Bar("operators", "views of a call", "views", "at most", 200),
    Bar("load", "stock's time over ours, one core busy", "ratio", "at least", 1),
    Bar(
        "bookkeeping",
        "microseconds of a cached call beyond its operators",
        "beyond_seconds",
        "at most",
        60,
        1e-6,
    ),
    Bar("planning", "milliseconds of a plan", "seconds", "at most", 100, 1e-3),
)


def render(content: dict[str, Any]) -> str:
    """Bars, the worst records of each, and all counts of operators."""
    metadata, records = content["metadata"], content["records"]
    lines = ["# What calls cost beyond their arithmetic", ""]
    lines += [f"- {key}: {value}" for key, value in metadata.items()]
    lines += ["", table(bar_rows(bar.judge(records) for bar in BARS))]
    for bar in BARS:
        found = bar.of(records)
        if not found:
            continue
        found.sort(key=lambda one: one[bar.field], reverse=bar.aim == "at most")
        rows = [["layer", "quantity", bar.text]]
        for one in found[:_SHOWN]:
            cell = number(one[bar.field], 1 / bar.unit)
            rows.append([one["layer"], one["quantity"], cell])
        lines += ["", f"## {bar.text.capitalize()}", "", table(rows)]
    failed = [record for record in records if "reason" in record]
    lines += ["", *(f"- {record['title']}: {record['reason']}" for record in failed)]
    return "\n".join(lines).rstrip() + "\n"


_SHOWN = 20
"""Records of each bar, the worst ones."""


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure what is selected; the path of the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.calls", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--only", default="", help="regular expression of what to measure")
    add("--rounds", type=number_of_rounds, default=7)
    add("--threads", type=int, default=2)
    add("--resume", action="store_true", help="keep the file's records, add others")
    add("--output", type=Path, default=RESULTS / "calls_cpu.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    known = storage.read_json(args.output)["records"] if args.resume else []
    done = {record["title"] for record in known}
    chosen = [row for row in rows(args.rounds) if re.search(args.only, row.title)]
    with torch.no_grad():
        measure_all(
            [row for row in chosen if row.title not in done],
            Row.parts,
            args.output,
            machine.describe(torch.device("cpu"))
            | {"dtype": "float32", "rounds": args.rounds},
            known,
        )
    report = render(storage.read_json(args.output))
    markdown = args.output.with_suffix(".md")
    storage.write_text(markdown, report)
    print(f"{report}\n{args.output}\n{markdown}")
    return Path(args.output)


if __name__ == "__main__":
    main()
