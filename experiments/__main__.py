"""The one command: ``python -m experiments QUESTION``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments import gpu
from experiments.harness import machine, report
from experiments.harness.case import Options
from experiments.harness.measure import MIN_ROUNDS
from experiments.harness.run import run
from experiments.harness.store import Store
from experiments.questions import NAMES, find

FOLDER = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, and write reports."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.rounds < MIN_ROUNDS:
        parser.error(f"--rounds must be at least {MIN_ROUNDS}, got {args.rounds}")
    args.device = args.device or ("cuda" if args.question == "gpu" else "cpu")
    if args.question == "report":
        write_reports(args.output)
        return 0
    device = torch.device(args.device)
    if args.question == "gpu":
        return gpu.run(args.device, args.quick, args.output, args.minutes or 8)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    # convolutions would round their inputs to 10 bits, matrix products not
    torch.backends.cudnn.allow_tf32 = False
    options = Options(device, args.rounds, not args.no_memory, args.quick)
    seconds = None if args.minutes is None else 60 * args.minutes
    for name in NAMES if args.question == "all" else [args.question]:
        question = find(name)
        label = machine.label(device) + ("-quick" if args.quick else "")
        path = args.output / f"{name}-{label}.jsonl"
        store = Store(path, machine.describe(device))
        run(
            question,
            options,
            store,
            wanted=lambda case: all(text in case.title for text in args.only),
            resume=args.resume,
            seconds=seconds,
        )
        if path.exists():
            print(report.write(name, question, path))
    return 0


def write_reports(folder: Path) -> None:
    """Render the reports of all rows in a folder, and the list of questions."""
    questions = [(name, find(name)) for name in NAMES]
    for name, question in questions:
        for path in sorted(folder.glob(f"{name}-*.jsonl")):
            report.write(name, question, path)
    page = report.overview(questions, folder)
    report.write_text(folder.parent / "README.md", page)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Answer a question by measuring, and write rows and a report.",
        epilog="Questions: " + ", ".join(NAMES),
    )
    add = parser.add_argument
    others = "or all, report, gpu (a pass of 8 minutes over a device)"
    choices = (*NAMES, "all", "report", "gpu")
    add("question", choices=choices, metavar="QUESTION", help=f"which, {others}")
    add("--device", help="cpu (default) or cuda (default of gpu)")
    add("--threads", type=int, help="of a CPU (default: torch's choice)")
    add("--rounds", type=int, default=MIN_ROUNDS, help="at least five (default)")
    add("--quick", action="store_true", help="few and small cases")
    add("--only", action="append", default=[], metavar="TEXT", help="in a case's key")
    add("--resume", action="store_true", help="pass over cases that were measured")
    add("--no-memory", action="store_true", help="time only")
    add("--minutes", type=float, help="begin no new case of a question after these")
    add("--output", type=Path, default=FOLDER / "results", metavar="FOLDER")
    return parser


if __name__ == "__main__":
    # what former runs have measured would decide plans that are to be estimated
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TN_EXTENSIONS_CACHE", folder)
        sys.exit(main())
