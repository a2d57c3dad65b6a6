"""How fast and lean are our curvlinops operators, against stock curvlinops?

``python -m experiments.curvlinops_suite --help`` lists the options. Writes JSON and,
beside it, a Markdown report and figures (see ``experiments.curvlinops_report``):
building KFAC and EKFAC, products with them and their inverses, the input factor of
each layer, and peak memory.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from experiments import curvlinops_report, machine, storage
from experiments.bars import Record
from experiments.measure import (
    MIN_ROUNDS,
    Call,
    MemoryNotMeasured,
    medians,
    memory_share,
    preload,
    ratios,
    time_side_by_side,
)
from experiments.models import Subject
from experiments.operator_layers import LayerRow, layer_parts
from experiments.operators import (
    KINDS,
    OURS,
    Case,
    Side,
    deviation,
    kept_bytes,
    peak_of_build,
    trace_deviation,
    vector_like,
)
from experiments.records import measure_all

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-4
"""Of a product in float32, relative to each tensor's largest entry; of a trace."""
LOOSE_TOLERANCE = 5e-2
"""Likewise of EKFAC's products, as eigenvectors of close eigenvalues are arbitrary, and
of inverses, which multiply rounding by the condition number."""
DAMPING = 1e-2
MIN_SLOW_ROUNDS = 1

WORKLOADS = (
    (Subject("resnet18", 224), 8),
    (Subject("resnet18", 64), 16),
    (Subject("allcnnc"), 32),
    (Subject("unet", 64), 8),
)
"""Networks and batch sizes."""
QUICK_WORKLOADS = ((Subject("unet", 16), 2),)
INVERSES: dict[str, dict[str, Any]] = {
    "inverse": {"damping": DAMPING},
    "exact inverse": {"damping": DAMPING, "use_exact_damping": True},
}
"""Arguments of inverses; an EKFAC's damping is always exact."""

Row = Case | LayerRow


class Settings(NamedTuple):
    """How to measure.

    Args:
        rounds: Number of rounds of the timings.
        slow_rounds: Likewise where stock decomposes factors, which takes minutes.
        with_memory: Whether to measure memory.
    """

    rounds: int
    slow_rounds: int
    with_memory: bool


def rows_of(
    workloads: Sequence[tuple[Subject, int]],
    fisher_types: Sequence[str],
    library: str = OURS,
) -> list[Row]:
    """What to measure, in this order.

    EKFAC is measured with empirical gradients only, since others change nothing but
    what is backpropagated; the exact ones on All-CNN-C only, as they take a backward
    pass for each class.
    """
    rows: list[Row] = []
    for subject, batch_size in workloads:
        for fisher_type in fisher_types:
            if fisher_type == "type-2" and subject.network != "allcnnc":
                continue
            rows += [
                Case(subject, batch_size, kind, fisher_type, library)
                for kind, (class_name, _) in KINDS.items()
                if fisher_type == "empirical" or class_name == "KFACLinearOperator"
            ]
        rows += [
            LayerRow(Case(subject, batch_size, kind, library=library)) for kind in KINDS
        ]
    return [row for row in rows if row.exists]


def parts_of(row: Row, settings: Settings) -> Iterator[dict[str, Any]]:
    """Measure a row; parts of its record, of which the last says that it is whole."""
    if isinstance(row, LayerRow):
        yield from layer_parts(row, settings.rounds)
    else:
        yield from _operator_parts(row, settings)
    yield {"complete": True}


def _operator_parts(case: Case, settings: Settings) -> Iterator[dict[str, Any]]:
    yield {
        "part": "operator",
        "kind": case.kind,
        "network": case.subject.network,
        "pixels": case.subject.pixels,
        "batch_size": case.batch_size,
        "fisher_type": case.fisher_type,
    }
    model, batch = case.subject.plain(), case.subject.batch(case.batch_size)
    parameters, every = (case.parameters(model, side) for side in ("ours", "all"))
    yield {
        "num_parameters": {
            "both": sum(p.numel() for p in parameters),
            "ours": sum(p.numel() for p in every),
            "network": sum(p.numel() for p in model.parameters()),
        }
    }
    sides: list[Side] = ["ours", "stock", "plain"]
    if len(every) > len(parameters):
        sides.append("all")
    built: dict[Side, Any] = {}

    def build(side: Side) -> None:
        built[side] = case.run(side, model, batch)

    calls: dict[str, Call] = {side: partial(build, side) for side in sides}
    # two operators of a side would take twice the memory
    forget: dict[str, Call] = {side: partial(built.pop, side, None) for side in sides}
    is_slow = KINDS[case.kind].is_corrected
    times = time_side_by_side(
        calls,
        settings.slow_rounds if is_slow else settings.rounds,
        setup=forget,
        min_rounds=MIN_SLOW_ROUNDS if is_slow else MIN_ROUNDS,
    )
    ours, stock = built["ours"], built["stock"]
    built.clear()
    vector = vector_like(parameters)
    checked = {
        "error": deviation(ours @ vector, stock @ vector),
        "trace_error": trace_deviation(ours, stock),
    }
    limit = LOOSE_TOLERANCE if is_slow else TOLERANCE
    agrees = checked["error"] <= limit and checked["trace_error"] <= TOLERANCE
    yield checked | {"agrees": agrees}
    if not agrees:
        return
    yield _compared(times)
    kept = {"ours": kept_bytes(ours), "stock": kept_bytes(stock)}
    if case.fisher_type == "empirical":
        # the others' products take the same time
        products: dict[str, Any] = {}
        for name, part in _products(case, ours, stock, settings):
            products[name] = part
            yield {"products": products}
    del ours, stock
    if settings.with_memory and case.fisher_type == "empirical":
        try:
            yield _weigh(case, kept)
        except MemoryNotMeasured as reason:
            yield {"reason": f"memory: {reason}"}


def _products(
    case: Case, ours: Any, stock: Any, settings: Settings
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Time products with operators and their inverses, once and again."""
    operators: dict[Side, Any] = {"ours": ours, "stock": stock}
    vector = vector_like(ours._params)

    def compare(
        calls: dict[Side, Call], tolerance: float, is_slow: bool = False
    ) -> dict[str, Any]:
        products: dict[str, Any] = {}

        def multiply(side: Side) -> None:
            products[side] = calls[side]()

        times = time_side_by_side(
            {side: partial(multiply, side) for side in calls},
            settings.slow_rounds if is_slow else settings.rounds,
            min_rounds=MIN_SLOW_ROUNDS if is_slow else MIN_ROUNDS,
        )
        error = deviation(products["ours"], products["stock"])
        agrees = error <= tolerance
        return {"error": error, "agrees": agrees} | (_compared(times) if agrees else {})

    is_corrected = KINDS[case.kind].is_corrected
    tolerance = LOOSE_TOLERANCE if is_corrected else TOLERANCE
    yield (
        "matvec",
        compare(
            {side: partial(one.__matmul__, vector) for side, one in operators.items()},
            tolerance,
        ),
    )
    for name, options in INVERSES.items():
        is_exact = "use_exact_damping" in options
        if is_corrected and not is_exact:
            continue
        inverses: dict[Side, Any] = {}

        def first(
            side: Side, options: dict[str, Any], inverses: dict[Side, Any]
        ) -> Any:
            inverses[side] = case.invert(side, operators[side], options)
            return inverses[side] @ vector

        firsts: dict[Side, Call] = {
            side: partial(first, side, options, inverses) for side in operators
        }
        is_slow = is_exact and not is_corrected
        yield f"{name}, first", compare(firsts, LOOSE_TOLERANCE, is_slow)
        again: dict[Side, Call] = {
            side: partial(one.__matmul__, vector) for side, one in inverses.items()
        }
        yield f"{name}, again", compare(again, LOOSE_TOLERANCE)


def _compared(times: dict[str, list[float]]) -> dict[str, Any]:
    seconds = medians(times)
    found = ratios(times["stock"], times["ours"])
    return {
        "rounds": len(found),
        "seconds": seconds,
        "ratio": seconds["stock"] / seconds["ours"],
        "ratio_range": [min(found), max(found)],
    }


def _weigh(case: Case, kept: dict[str, int]) -> dict[str, Any]:
    """Peak memory beyond that of a forward and a backward pass."""
    sides: tuple[Side, ...] = ("ours", "stock", "plain")
    peaks = {side: peak_of_build(case, side) for side in sides}
    ours, stock = (max(0, peaks[side] - peaks["plain"]) for side in sides[:2])
    passing = (max(0, ours - kept["ours"]), max(0, stock - kept["stock"]))
    return {
        "peak_bytes": peaks,
        "kept_bytes": kept,
        "memory_bytes": {"ours": ours, "stock": stock},
        "memory_share": memory_share(ours, stock),
        "passing_share": memory_share(*passing),
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure what the command line asks for; the path of the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.curvlinops_suite",
        description=__doc__.splitlines()[0],
    )
    add = parser.add_argument
    add("--only", metavar="REGEX", help="only rows whose title has it; see --list")
    add("--list", action="store_true", help="print the titles of all rows")
    add(
        "--fisher-types",
        nargs="+",
        choices=("empirical", "mc", "type-2"),
        default=["empirical", "mc"],
        help="type-2: All-CNN-C only (default: empirical mc)",
    )
    add("--rounds", type=int, default=7, help=f"at least {MIN_ROUNDS} (default: 7)")
    add(
        "--slow-rounds",
        type=int,
        default=3,
        help="of what takes stock minutes: building EKFAC, inverting with exact "
        "damping (default: 3)",
    )
    add("--threads", type=int, help="default: torch's")
    add("--no-memory", action="store_true", help="do not measure peak memory")
    add("--quick", action="store_true", help="one small network, few rounds")
    add("--resume", action="store_true", help="go on with the output of a former run")
    add("--output", type=Path, default=RESULTS / "curvlinops-suite-cpu.json")
    # the tests measure stock against itself
    add("--library", default=OURS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.rounds < MIN_ROUNDS:
        parser.error(f"--rounds must be at least {MIN_ROUNDS}, got {args.rounds}")
    if args.slow_rounds < MIN_SLOW_ROUNDS:
        parser.error(f"--slow-rounds must be positive, got {args.slow_rounds}")
    workloads = QUICK_WORKLOADS if args.quick else WORKLOADS
    rows = [
        row
        for row in rows_of(workloads, args.fisher_types, args.library)
        if re.search(args.only or "", row.title)
    ]
    if args.list or not rows:
        titles = "\n".join(row.title for row in rows)
        parser.exit(0 if rows else 2, f"{titles or 'no row has such a title'}\n")
