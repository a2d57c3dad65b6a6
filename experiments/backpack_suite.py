"""How fast and lean are whole backward passes with our extensions, against BackPACK's?

``python -m experiments.backpack_suite --help`` lists the options. Writes JSON and,
beside it, a Markdown report (see ``experiments.backpack_report``): time and peak memory
of ``with backpack(extension)`` on three networks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from experiments import backpack_report, machine
from experiments.backward_passes import (
    OURS,
    ExtractionTimer,
    Pass,
    Row,
    Side,
    affordable_batch_size,
    largest_difference,
    names,
    num_bytes,
    peak_of_backward,
)
from experiments.bars import Record
from experiments.measure import (
    MIN_ROUNDS,
    Call,
    MemoryNotMeasured,
    medians,
    memory_share,
    number_of_rounds,
    preload,
    ratios,
    time_side_by_side,
)
from experiments.models import subjects
from experiments.records import complete, measure_all

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-4
"""Of a saved entry in float32, relative to its tensor's largest entry."""

ALL = ("3c3d", "allcnnc", "resnet18")
EXTENSIONS = {
    "BatchGrad": ALL,
    "BatchL2Grad": ALL,
    "SumGradSquared": ALL,
    "Variance": ALL,
    "DiagGGNMC": ALL,
    "DiagGGNExact": ("3c3d", "allcnnc"),
    "BatchDiagGGNMC": ALL,
    "KFAC": ALL,
    "KFLR": ("3c3d",),
    "SqrtGGNMC": ALL,
}
"""Extensions, and the networks that stock has time and memory for."""

SIDES: tuple[Side, ...] = ("ours", "stock", "plain")
EXTENDED: tuple[Side, ...] = ("ours", "stock")


class Settings(NamedTuple):
    """How to measure.

    Args:
        batch_size: Number of samples.
        rounds: Number of rounds of the timings.
        memory_limit: Bytes that stock may need; without measuring memory there is no
            limit.
        with_memory: Whether to measure memory.
        steady: Whether memory is that of a second pass on a batch of the same size.
    """

    batch_size: int
    rounds: int
    memory_limit: float
    with_memory: bool
    steady: bool = False


def measure(row: Row, settings: Settings) -> Record:
    """Check, time and weigh an extension on a network; a record for the JSON file."""
    return complete({"title": row.title}, _parts(row, settings))


def _parts(row: Row, settings: Settings) -> Iterator[dict[str, Any]]:
    yield {
        "extension": row.extension,
        "network": row.subject.network,
        "pixels": row.subject.pixels,
    }
    yield {"replaced": names(row.replaced())}
    batch_size = settings.batch_size
    if settings.with_memory:
        peak = partial(peak_of_backward, row, "stock")
        limit = settings.memory_limit
        try:
            batch_size, estimate = affordable_batch_size(peak, batch_size, limit)
            yield {"stock_bytes_estimate": estimate}
        except MemoryNotMeasured as reason:
            yield {"reason": f"memory: {reason}"}
    yield {"batch_size": batch_size}

    passes = _passes(row, batch_size)
    checked = _check(passes)
    yield checked
    if not checked["agrees"]:
        return
    yield _time(passes, settings.rounds)
    del passes
    if settings.with_memory:
        try:
            yield _weigh(row, batch_size, settings.steady, checked["saved_bytes"])
        except MemoryNotMeasured as reason:
            yield {"reason": f"memory: {reason}"}


def _passes(row: Row, batch_size: int) -> dict[Side, Pass]:
    model = row.subject.build(row.replaced())
    batch = row.subject.batch(batch_size)
    return {side: Pass(model, *batch, row.make_extension(side)) for side in SIDES}


def _check(passes: dict[Side, Pass]) -> dict[str, Any]:
    """Compare what ours and stock's save."""
    saved = {}
    for side in EXTENDED:
        passes[side].forward()
        passes[side].backward()
        saved[side] = passes[side].saved()
        passes[side].forget()
    error = largest_difference(saved["ours"], saved["stock"])
    return {
        "error": error,
        "agrees": bool(saved["stock"]) and error <= TOLERANCE,
        "saved_bytes": {side: num_bytes(saved[side]) for side in EXTENDED},
    }


def _time(passes: dict[Side, Pass], rounds: int) -> dict[str, Any]:
    """Time the backward passes, and within them what is spent on parameters."""
    timers = {
        side: ExtractionTimer(extension)
        for side in EXTENDED
        for extension in passes[side].extensions
    }
    shares: dict[Side, list[float]] = {side: [] for side in EXTENDED}

    def backward(side: Side) -> None:
        start = time.perf_counter()
        passes[side].backward()
        if side in timers:
            whole = time.perf_counter() - start
            shares[side].append(timers[side].take() / whole)

    calls: dict[str, Call] = {side: partial(backward, side) for side in SIDES}
    forward: dict[str, Call] = {side: passes[side].forward for side in SIDES}
    times = time_side_by_side(calls, rounds, setup=forward)
    for side in SIDES:
        passes[side].forget()
    seconds = medians(times)
    found = ratios(times["stock"], times["ours"])
    # shares, as the calls that are not rounds may have been disturbed; the first one
    # paid for plans and caches
    within = {side: seconds[side] * median(shares[side][1:]) for side in EXTENDED}
    return {
        "seconds": seconds,
        "ratio": seconds["stock"] / seconds["ours"],
        "ratio_range": [min(found), max(found)],
        "extraction_seconds": within,
        "extraction_ratio": within["stock"] / within["ours"],
    }


def _weigh(
    row: Row, batch_size: int, steady: bool, saved: dict[str, int]
) -> dict[str, Any]:
    """Peak memory beyond that of a plain backward pass and beyond what is saved."""
    peaks = {side: peak_of_backward(row, side, batch_size, steady) for side in SIDES}
    base = peaks["plain"]
    ours, stock = (max(0, peaks[side] - base - saved[side]) for side in EXTENDED)
    return {
        "peak_bytes": peaks,
        "memory_bytes": {"ours": ours, "stock": stock},
        "memory_share": memory_share(ours, stock),
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure what the command line asks for; the path of the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.backpack_suite", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=ALL, default=list(ALL))
    add("--extensions", nargs="+", choices=EXTENSIONS, default=list(EXTENSIONS))
    add("--batch-size", type=int, help="at most (default: 16, quick: 2)")
    add(
        "--pixels",
        nargs="+",
        type=int,
        default=[64],
        help="sides of ResNet-18's images (default: 64)",
    )
    add(
        "--rounds",
        type=number_of_rounds,
        default=7,
        help=f"at least {MIN_ROUNDS} (default: 7)",
    )
    add("--threads", type=int, default=2)
    add("--no-memory", action="store_true", help="do not measure peak memory")
    add(
        "--memory-limit",
        type=float,
        default=8.0,
        metavar="GIB",
        help="halve the batch until stock's backward pass fits (default: 8)",
    )
    add(
        "--steady",
        action="store_true",
        help="memory of a second pass: without plans and caches, which stay after one",
    )
    add("--quick", action="store_true", help="two samples, as few rounds as count")
    add("--output", type=Path, default=RESULTS / "backpack-suite_cpu.json")
    # the tests measure stock against itself
    add("--library", default=OURS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    preload("experiments.backward_passes", "torchvision")

    settings = Settings(
        batch_size=args.batch_size or (2 if args.quick else 16),
        rounds=MIN_ROUNDS if args.quick else args.rounds,
        memory_limit=args.memory_limit * 2**30,
        with_memory=not args.no_memory,
        steady=args.steady,
    )
    rows = [
        row
        for subject in subjects(args.models, args.pixels)
        for extension in args.extensions
        if subject.network in EXTENSIONS[extension]
        and (row := Row(subject, extension, args.library)).exists
    ]
    if not rows:
        parser.error("none of these extensions is ours and measured on these models")
    metadata = machine.describe(torch.device("cpu")) | {
        "dtype": "float32",
        "rounds": settings.rounds,
        "tolerance": TOLERANCE,
        "memory": "of a second pass" if settings.steady else "of a first pass",
        "memory_limit_gib": args.memory_limit if settings.with_memory else None,
    }
    parts_of = partial(_parts, settings=settings)
    measure_all(rows, parts_of, args.output, metadata)
    markdown = backpack_report.write(args.output)
    print(f"{args.output}\n{markdown}")
    return Path(args.output)


if __name__ == "__main__":
    main()
