"""How good are the planner's choices?

``python -m experiments.plans --help`` lists the options. Runs all candidates of a plan,
those that were rejected included, and compares the chosen one with the fastest. Writes
JSON, whose records hold what each candidate was estimated to take and what it took,
and, beside it, a Markdown report.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch

from experiments import machine, storage
from experiments.cases import PLANNED, Case
from experiments.markdown import number, table
from experiments.measure import medians, number_of_rounds, time_side_by_side
from experiments.records import measure_all
from tn_extensions import planning
from tn_extensions.compiler import Plan
from tn_extensions.compiler.candidate import Candidate

Clock = Callable[[], float]
RESULTS = Path(__file__).parent / "results"
QUANTITIES = (
    "kfac_expand",
    "kfac_reduce",
    "per_sample_grad",
    "per_sample_grad_norm",
    "ggn_diagonal",
    "ggn_gram",
)
SLOWEST_ESTIMATE = 10.0
"""Times the chosen one's estimate from which on candidates are not run."""
SLOWEST = 1.5
"""Times the fastest one's time from which on candidates are run once only."""
TOLERANCE = 1e-2
"""Of candidates' values; they differ by rounding, by far less than this."""


def candidates(plan: Plan) -> list[Candidate]:
    """List the chosen candidate, then the others worth running, within the budget."""
    worth = SLOWEST_ESTIMATE * plan.cost.seconds
    most = plan.target.budget // plan.target.itemsize
    others = (
        other
        for other in plan.rejected
        if other.cost.seconds <= worth and other.peak <= most
    )
    return [plan.candidate, *others]


def measure(case: Case, rounds: int, clock: Clock) -> dict[str, Any]:
    """Run the candidates of a case alternating; a record for the JSON file."""
    arguments = case.tensors()
    case.call(arguments)()  # if choices are measured, this one is
    plan = case.plan()
    found = candidates(plan)
    tensors = {"g" if name == "S" else name: t for name, t in arguments.items()}
    shape = plan.network.shape
    runs = [partial(one.with_value(shape).value, tensors) for one in found]
    expected = runs[0]()
    scale = expected.abs().max()
    once = []
    for run, candidate in zip(runs, found, strict=True):
        error = (run() - expected).abs().max() / scale
        if not error <= TOLERANCE:
            raise RuntimeError(f"{candidate.label} differs by {error:.1e}")
        start = clock()
        run()
        once.append(clock() - start)
    fast = [i for i, seconds in enumerate(once) if seconds <= SLOWEST * min(once)]
    fast = sorted({0, *fast})
    times = time_side_by_side({str(i): runs[i] for i in fast}, rounds, clock=clock)
    seconds = medians(times)
    measured = [seconds.get(str(i), once[i]) for i in range(len(found))]
    best = min(range(len(found)), key=lambda i: measured[i])
    return {
        "layer": case.layer,
        "quantity": case.quantity,
        "chosen": found[0].name,
        "estimated": plan.estimated.name,
        "best": found[best].name,
        "ratio": measured[0] / measured[best],
        "candidates": [
            {
                "name": candidate.name,
                "operations": [
                    {"name": row.name, "shapes": row.shapes, "times": row.times}
                    | {"cost": asdict(row.cost)}
                    for row in candidate.operations
                ],
                "peak": candidate.peak,
                "estimated_seconds": candidate.cost.seconds,
                "measured_seconds": measured[i],
                "alternating": i in fast,
            }
            for i, candidate in enumerate(found)
        ],
    }


def parts(case: Case, rounds: int, clock: Clock) -> Iterator[dict[str, Any]]:
    """Measure a case; the parts of a record."""
    yield measure(case, rounds, clock)


def render(content: dict[str, Any]) -> str:
    """A table of ratios, and one of the choices that were not the fastest."""
    records = [record for record in content["records"] if "ratio" in record]
    lines = ["# Choices of the planner", ""]
    lines += [f"- {key}: {value}" for key, value in content["metadata"].items()]
    lines += ["", "Time of the chosen candidate over the fastest one's.", ""]
    ratios = {(r["layer"], r["quantity"]): r["ratio"] for r in records}
    layers = list(dict.fromkeys(layer for layer, _ in ratios))
    columns = list(dict.fromkeys(quantity for _, quantity in ratios))
    rows = [["layer", *columns]]
    for layer in layers:
        cells = (ratios.get((layer, quantity)) for quantity in columns)
        rows.append([layer, *(number(cell) for cell in cells)])
    for title, combine in (("geometric mean", geometric_mean), ("worst", max)):
        grouped = ([r for (_, q), r in ratios.items() if q == name] for name in columns)
        rows.append([title, *(number(combine(group)) for group in grouped)])
    lines.append(table(rows))
    if ratios:
        mean, worst = geometric_mean(ratios.values()), max(ratios.values())
        lines += ["", f"All: geometric mean {mean:.3f}, worst {worst:.2f}.", ""]
    rows = [["layer", "quantity", "ratio", "chosen", "ms", "estimated"]]
    rows[0] += ["fastest", "ms", "estimated"]
    for record in sorted(records, key=lambda record: -record["ratio"]):
        if record["ratio"] > 1.05:
            chosen, *_ = record["candidates"]
            best = min(record["candidates"], key=lambda one: one["measured_seconds"])
            rows.append([record["layer"], record["quantity"], number(record["ratio"])])
            for one in (chosen, best):
                times = (one["measured_seconds"], one["estimated_seconds"])
                rows[-1] += [one["name"], *(number(value, 1e3) for value in times)]
    lines.append(table(rows))
    failed = [record for record in content["records"] if "reason" in record]
    lines += ["", *(f"- {record['title']}: {record['reason']}" for record in failed)]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure all cases; the path of the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.plans", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--only", default="", help="regular expression of the cases to measure")
    add("--planning", choices=("estimate", "measure"), default="estimate")
    add("--rounds", type=number_of_rounds, default=7)
    add("--threads", type=int, default=2)
    add(
        "--processor-time",
        action="store_true",
        help="where others use the machine, too; needs --threads 1",
    )
    add("--quick", action="store_true", help="two small layers, five rounds")
    add("--resume", action="store_true", help="keep the file's records, add others")
    add("--output", type=Path, default=RESULTS / "plans_cpu.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    known = storage.read_json(args.output)["records"] if args.resume else []
    titles = {record["title"] for record in known}
    layers = ("256x14 k1", "512x7 k3") if args.quick else tuple(PLANNED)
    cases = [Case(name, PLANNED[name], q) for name in layers for q in QUANTITIES]
    cases = [case for case in cases if re.search(args.only, case.title)]
    rounds = 5 if args.quick else args.rounds
    metadata = machine.describe(torch.device("cpu"))
    clock = time.process_time if args.processor_time else time.perf_counter
    metadata |= {"dtype": "float32", "rounds": rounds, "clock": clock.__name__}
    metadata["planning"] = args.planning
    with torch.no_grad(), planning(args.planning):
        measure_all(
            [case for case in cases if case.title not in titles],
            partial(parts, rounds=rounds, clock=clock),
            args.output,
            metadata,
            known,
        )
    report = render(storage.read_json(args.output))
    markdown = args.output.with_suffix(".md")
    storage.write_text(markdown, report)
    print(f"{report}\n{args.output}\n{markdown}")
    return Path(args.output)


if __name__ == "__main__":
    main()
