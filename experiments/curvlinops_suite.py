"""How fast and lean are our curvlinops operators, against stock curvlinops?

``python -m experiments.curvlinops_suite --help`` lists the options. Writes JSON and,
beside it, a Markdown report and figures (see ``experiments.curvlinops_report``):
building KFAC and EKFAC, products with them and their inverses, the input factor of
each layer, and peak memory.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments import curvlinops_report, machine, storage
from experiments.bars import Record
from experiments.measure import MIN_ROUNDS, number_of_rounds, preload
from experiments.models import Subject
from experiments.operator_costs import (
    DAMPING,
    LOOSE_TOLERANCE,
    TOLERANCE,
    Settings,
    operator_parts,
)
from experiments.operator_layers import LayerRow, layer_parts
from experiments.operators import KINDS, OURS, Case
from experiments.records import measure_all

RESULTS = Path(__file__).parent / "results"
WORKLOADS = (
    (Subject("resnet18", 224), 8),
    (Subject("resnet18", 64), 16),
    (Subject("allcnnc"), 32),
    (Subject("unet", 64), 8),
)
"""Networks and batch sizes."""
QUICK_WORKLOADS = ((Subject("unet", 16), 2),)
Row = Case | LayerRow


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
                for kind in KINDS
                if fisher_type == "empirical" or kind != "ekfac"
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
        yield from operator_parts(row, settings)
    yield {"complete": True}


def former_records(path: Path, metadata: Mapping[str, Any]) -> list[Record]:
    """Whole records of a former run, if it was like this one.

    Raises:
        ValueError: If it was not; measurements of two machines or versions do not mix.
    """
    if not path.exists():
        return []
    content = storage.read_json(path)
    for key, value in metadata.items():
        if key != "date" and content["metadata"].get(key) != value:
            raise ValueError(
                f"{path} was measured with {key} = {content['metadata'].get(key)}, "
                f"now it is {value}"
            )
    return [record for record in content["records"] if record.get("complete")]


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
    add(
        "--rounds",
        type=number_of_rounds,
        default=7,
        help=f"at least {MIN_ROUNDS} (default: 7)",
    )
    add(
        "--slow-rounds",
        type=int,
        default=5,
        help="of what takes stock long: building EKFAC, inverting with exact damping "
        "(default: 5; fewer only to save time)",
    )
    add("--threads", type=int, help="default: torch's")
    add("--no-memory", action="store_true", help="do not measure peak memory")
    add("--quick", action="store_true", help="one small network, few rounds")
    add("--resume", action="store_true", help="go on with the output of a former run")
    add("--output", type=Path, default=RESULTS / "curvlinops-suite-cpu.json")
    # the tests measure stock against itself
    add("--library", default=OURS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.slow_rounds < 1:
        parser.error(f"--slow-rounds must be positive, got {args.slow_rounds}")
    workloads = QUICK_WORKLOADS if args.quick else WORKLOADS
    rows = [
        row
        for row in rows_of(workloads, args.fisher_types, args.library)
        if re.search(args.only or "", row.title)
    ]
    if not rows:
        parser.error(f"--only: no row has a title with {args.only!r}, see --list")
    if args.list:
        print("\n".join(row.title for row in rows))
        parser.exit()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    preload("experiments.operators", "torchvision", OURS)

    settings = Settings(
        rounds=MIN_ROUNDS if args.quick else args.rounds,
        slow_rounds=args.slow_rounds,
        with_memory=not args.no_memory,
    )
    metadata = machine.describe(torch.device("cpu")) | {
        "dtype": "float32",
        "rounds": settings.rounds,
        "slow_rounds": settings.slow_rounds,
        "damping": DAMPING,
        "tolerance": TOLERANCE,
        "loose_tolerance": LOOSE_TOLERANCE,
    }
    known: list[Record] = []
    if args.resume:
        try:
            known = former_records(args.output, metadata)
        except ValueError as reason:
            parser.error(f"--resume: {reason}")
    titles_known = {record["title"] for record in known}
    rows = [row for row in rows if row.title not in titles_known]
    measure_all(
        rows, partial(parts_of, settings=settings), args.output, metadata, known
    )
    written = curvlinops_report.write(args.output)
    print("\n".join(map(str, [args.output, *written])))
    return Path(args.output)


if __name__ == "__main__":
    main()
