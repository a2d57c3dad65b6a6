"""What does training with our preconditioner cost, beside SGD and the usual KFAC?

``python -m experiments.optimizers --help`` lists the options. Writes JSON and, beside
it, a Markdown report (see ``experiments.optimizers_report``): time of steps beyond
SGD's, peak memory, and steps of several processes, measured and on paper.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments import machine, optimizers_report, storage
from experiments.measure import MIN_ROUNDS, number_of_rounds, preload
from experiments.models import Subject
from experiments.optimizer_asdl import AsdlRow, asdl_parts
from experiments.optimizer_contenders import LR, MOMENTUM, STOCK_NAMES, Case
from experiments.optimizer_costs import (
    GRADIENT_TOLERANCE,
    TOLERANCE,
    Settings,
    overhead_parts,
)
from experiments.optimizer_processes import ProcessesRow, process_parts, processes_rows
from experiments.optimizer_scaling import PaperRow, Rates, paper_parts
from experiments.records import measure_all

RESULTS = Path(__file__).parent / "results"
WORKLOADS = ((Subject("resnet18", 112), 8), (Subject("vgg19", 64), 8))
"""Networks and batch sizes."""
QUICK_WORKLOADS = ((Subject("3c3d"), 2),)
PARTS = ("overhead", "scaling")
Row = Case | AsdlRow | ProcessesRow | PaperRow


def rows_of(
    workloads: Sequence[tuple[Subject, int]],
    part: str | None,
    processes: Sequence[int],
    rates: Rates,
) -> list[Row]:
    """What to measure, in this order.

    Args:
        workloads: Networks and batch sizes.
        part: One of :data:`PARTS`. ``None``: all.
        processes: Numbers of processes.
        rates: Of what is computed on paper.
    """
    rows: list[Row] = []
    if part != "scaling":
        rows += [
            Case(subject, batch_size, approx, is_late)
            for subject, batch_size in workloads
            for approx in STOCK_NAMES
            for is_late in (True, False)
        ]
        # it has KFAC-expand only
        rows += [
            AsdlRow(row)
            for row in rows
            if isinstance(row, Case) and row.approx == "expand"
        ]
    if part != "overhead":
        rows += processes_rows(processes)
        rows += [PaperRow(network, rates) for network in ("resnet18", "resnet50")]
    return rows


def parts_of(row: Row, settings: Settings) -> Iterator[dict[str, Any]]:
    """Measure a row; parts of its record, of which the last says that it is whole."""
    if isinstance(row, ProcessesRow):
        yield from process_parts(row, settings.rounds)
    elif isinstance(row, PaperRow):
        yield from paper_parts(row)
    elif isinstance(row, AsdlRow):
        yield from asdl_parts(row, settings)
    else:
        yield from overhead_parts(row, settings)
    yield {"complete": True}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure what the command line asks for; the path of the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.optimizers",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--only", choices=PARTS, help="one part alone")
    add("--rows", metavar="REGEX", help="only rows whose title has it; see --list")
    add("--list", action="store_true", help="print the titles of all rows")
    add("--rounds", type=number_of_rounds, default=7, help=f"at least {MIN_ROUNDS}")
    add("--slow-rounds", type=int, default=3, help="of updates of inverses")
    add("--processes", type=int, nargs="+", default=[1, 2, 4], help="to measure")
    add("--threads", type=int, help="of overheads (default: torch's)")
    add("--no-memory", action="store_true", help="do not measure peak memory")
    add("--quick", action="store_true", help="one small network, few rounds")
    add("--output", type=Path, default=RESULTS / "optimizers-cpu.json")
    for name, default in Rates()._asdict().items():
        option = f"--{name.replace('_', '-')}"
        add(option, type=type(default), default=default, help="of the table on paper")
    args = parser.parse_args(arguments)
    if args.slow_rounds < 1:
        parser.error(f"--slow-rounds must be positive, got {args.slow_rounds}")
    workloads = QUICK_WORKLOADS if args.quick else WORKLOADS
    rates = Rates(*(getattr(args, name) for name in Rates._fields))
    processes = [1, 2] if args.quick else args.processes
    rows = [
        row
        for row in rows_of(workloads, args.only, processes, rates)
        if re.search(args.rows or "", row.title)
    ]
    if not rows:
        parser.error(f"--rows: no row has a title with {args.rows!r}, see --list")
    if args.list:
        print("\n".join(row.title for row in rows))
        parser.exit()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    preload("experiments.optimizer_contenders", "torchvision")

    settings = Settings(
        rounds=MIN_ROUNDS if args.quick else args.rounds,
        slow_rounds=1 if args.quick else args.slow_rounds,
        with_memory=not args.no_memory,
    )
    metadata = machine.describe(torch.device("cpu")) | {
        "dtype": "float32",
        "rounds": settings.rounds,
        "slow_rounds": settings.slow_rounds,
        "optimizer": f"SGD, lr {LR}, momentum {MOMENTUM}",
        "tolerance": TOLERANCE,
        "gradient_tolerance": GRADIENT_TOLERANCE,
    }
    measure_all(rows, partial(parts_of, settings=settings), args.output, metadata)
    for record in storage.read_json(args.output)["records"]:
        if "reason" in record:
            print(f"{record['title']}: {record['reason']}", file=sys.stderr)
    print("\n".join(map(str, [args.output, *optimizers_report.write(args.output)])))
    return Path(args.output)


if __name__ == "__main__":
    main()
