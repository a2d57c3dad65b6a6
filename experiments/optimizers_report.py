"""Renders the JSON of ``experiments.optimizers``; measures nothing.

``python -m experiments.optimizers_report RESULT.json``
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import storage
from experiments.bars import Record, Verdict
from experiments.markdown import bar_rows, error, number, table
from experiments.report_command import write_reports

OVERHEAD_BARS = {"expand": 2.0, "reduce": 1 / 0.75}
"""The contender's overhead over ours, by approximation."""
MEMORY_BAR = 1.0

_OVERHEAD = (
    "Milliseconds of a step of training beyond those of SGD's (both with momentum, in "
    "training mode), medians of alternating rounds in one process; `x` is the "
    "contender's over ours (above 1: ours is faster). The contender is our "
    "preconditioner with factors that curvlinops' functions compute, `unfold` "
    "(expand) or `averaged patches` (reduce), always into matrices. `plain`: a step "
    "that updates nothing; `factors`: one that updates factors, not inverses; "
    "`update`: the latter beyond the former; `every "
    "n`: the average over steps of which each n-th updates both, from these and the "
    "time of updating all inverses, measured apart. `first steps`: our averages are "
    "still those of few data, and kept as roots; `in the long run`: they have become "
    "matrices, as they do while steps add data. Errors are of averaged factors and of "
    "preconditioned gradients of the first step, relative to the largest entry."
)
_MEMORY = (
    "Peak of the first two steps in a fresh process, with parameters. `share`: ours "
    "over 1.15 times SGD's and the bytes of the averages; `with inverses`: over that "
    "and the bytes of the inverses."
)
_ASDL = (
    "Milliseconds of a forward and a backward pass, without factors and with those of "
    "KFAC-expand averaged: by ours, and by ASDL (asdfghjkl), which fills matrices from "
    "unfolded inputs. No inverses, no preconditioning, no step of the optimizer, and "
    "no memory. `beyond`: what factors and averages add to a pass. `x` is ASDL's over "
    "ours. Errors are of averaged factors after two passes, relative to the largest "
    "entry, of all layers, without the bias, which ASDL leaves out of `A`."
)
_SCALING = (
    "Milliseconds of a step on so many processes of one thread each, which share the "
    "cores of this machine: where there are more processes than cores, they wait for "
    "each other. Each process has a batch of its own. `SGD` averages gradients, as "
    "the others do."
)
_PAPER = (
    "Computed, not measured; see `experiments.optimizer_scaling` for the formulas. MB "
    "are what the busiest process receives for an update of the factors, one of the "
    "inverses, and in each step; `inversion` is of the busiest process, an update; "
    "`a step` averages all of it over steps."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report that the command line asks for."""
    write_reports("experiments.optimizers_report", __doc__, write, arguments)


def write(result: Path) -> list[Path]:
    """Write a report beside a result file; its path."""
    report = result.with_suffix(".md")
    storage.write_text(report, render(storage.read_json(result)))
    return [report]


def render(content: dict[str, Any]) -> str:
    """A Markdown report of all records."""
    metadata, records = content["metadata"], content["records"]
    kinds = ("overhead", "asdl", "scaling", "paper")
    of: dict[str, list[Record]] = {kind: [] for kind in kinds}
    for record in records:
        of.get(record.get("part", ""), []).append(record)
    parts = [
        f"# Preconditioned training on {metadata['device_name']}",
        "\n".join(f"- {key}: {value}" for key, value in metadata.items()),
    ]
    if of["overhead"]:
        parts += ["## Bars", table(bar_rows(verdicts(records)))]
        rows = [row for one in of["overhead"] for row in _overhead_rows(one)]
        parts += ["## Overhead", _OVERHEAD, table([_OVERHEAD_HEAD, *rows])]
        rows = [_step_row(one) for one in of["overhead"] if "seconds" in one]
        parts += ["Whole steps and updates of inverses:", table([_STEP_HEAD, *rows])]
        rows = [_memory_row(one) for one in of["overhead"] if "peak_bytes" in one]
        parts += ["## Memory", _MEMORY, table([_MEMORY_HEAD, *rows])]
    if of["asdl"]:
        rows = [_asdl_row(one) for one in of["asdl"] if "seconds" in one]
        parts += ["## Factors of ASDL", _ASDL, table([_ASDL_HEAD, *rows])]
    if of["scaling"]:
        rows = [_scaling_row(one) for one in of["scaling"]]
        parts += ["## Several processes", _SCALING, table([_SCALING_HEAD, *rows])]
    if of["paper"]:
        parts += ["## Many processes, on paper", _PAPER]
        parts += [f"- {key}: {value}" for key, value in of["paper"][0]["rates"].items()]
        for one in of["paper"]:
            rows = [*map(_paper_row, one["rows"])]
            parts += [f"### {one['title']}", table([_PAPER_HEAD, *rows])]
    if failed := [line for record in records for line in _failures(record)]:
        parts += ["## Not measured", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def verdicts(records: Sequence[Record]) -> Iterator[Verdict]:
    """All bars and what was measured; those on time hold in the long run."""
    measured = [one for one in records if one.get("part") == "overhead"]
    for one in measured:
        if not one["is_late"]:
            continue
        bar = OVERHEAD_BARS[one["approx"]]
        overheads = one.get("overheads") or {"factors": {}}
        for name in overheads:
            if name not in ("plain", "update"):
                text = f"overhead, {name}: {one['title']}"
                yield Verdict(text, "at least", bar, overheads[name].get("ratio"))
    for one in measured:
        share = one.get("memory_share")
        yield Verdict(f"memory: {one['title']}", "at most", MEMORY_BAR, share)


_OVERHEAD_HEAD = ["", "steps", "ours ms", "contender ms", "x", "range", "SGD ms"]
_OVERHEAD_HEAD += ["error", "of gradients"]
_STEP_HEAD = ["", "SGD ms", "ours, plain", "contender", "ours, factors", "contender"]
_STEP_HEAD += ["ours, inverses", "contender"]
_STEPS = ["sgd", "ours plain", "stock plain", "ours factors", "stock factors"]
_STEPS += ["ours invert", "stock invert"]
_MEMORY_HEAD = ["", "MiB SGD", "ours", "averages, ours", "inverses, ours"]
_MEMORY_HEAD += ["averages, contender", "share", "with inverses"]
_ASDL_HEAD = ["", "pass ms", "ours", "ASDL", "x", "ours beyond", "ASDL beyond", "x"]
_ASDL_HEAD += ["range", "layers", "error"]
_SCALING_HEAD = ["processes", "grad_worker_fraction", "SGD", "plain", "factors"]
_SCALING_HEAD += ["inverses"]
_PAPER_HEAD = ["processes", "fraction", "MB factors", "MB inverses", "MB gradients"]
_PAPER_HEAD += ["inversion ms", "communication ms a step", "inversion ms a step"]


def _overhead_rows(record: Record) -> Iterator[list[str]]:
    for name, values in record.get("overheads", {}).items():
        is_factors = name == "factors"
        yield [
            record["title"],
            name,
            *(number(values[side], 1e3) for side in ("ours", "stock")),
            number(values.get("ratio")),
            "-".join(map(number, record["factors_range"])) if is_factors else "",
            number(record["seconds"]["sgd"], 1e3),
            error(record["error"]),
            error(record["gradient_error"]),
        ]


def _step_row(record: Record) -> list[str]:
    seconds = record["seconds"]
    return [record["title"], *(number(seconds[name], 1e3) for name in _STEPS)]


def _memory_row(record: Record) -> list[str]:
    peaks = record["peak_bytes"]
    averages, inverses = record["averages_bytes"], record["inverses_bytes"]
    num_bytes = [*(peaks[side] for side in ("sgd", "ours"))]
    num_bytes += [averages["ours"], inverses["ours"], averages["stock"]]
    shares = [record["memory_share"], record["share_with_inverses"]]
    return [
        record["title"],
        *(number(each, 2**-20) for each in num_bytes),
        *map(number, shares),
    ]


def _asdl_row(record: Record) -> list[str]:
    beyond = record["beyond"]
    return [
        record["title"],
        *(number(record["seconds"][name], 1e3) for name in ("pass", "ours", "asdl")),
        number(record["ratio"]),
        *(number(beyond[side], 1e3) for side in ("ours", "asdl")),
        number(beyond.get("ratio")),
        "-".join(map(number, record["beyond_range"])),
        str(record["layers"]),
        error(record["error"]),
    ]


def _scaling_row(record: Record) -> list[str]:
    seconds = record.get("seconds", {})
    kinds = ("sgd", "plain", "factors", "inverses")
    return [
        str(record["processes"]),
        number(record["fraction"]),
        *(number(seconds.get(kind), 1e3) for kind in kinds),
    ]


def _paper_row(row: dict[str, float]) -> list[str]:
    return [
        str(row["processes"]),
        number(row["fraction"]),
        *(number(row[f"{what}_bytes"], 1e-6) for what in ("factor", "inverse")),
        number(row["gradient_bytes"], 1e-6),
        number(row["inversion_seconds"], 1e3),
        number(row["communication_seconds_a_step"], 1e3),
        number(row["inversion_seconds_a_step"], 1e3),
    ]


def _failures(record: Record) -> Iterator[str]:
    """Why a row is not complete."""
    if not record.get("agrees", True):
        yield f"- **{record['title']}**: ours DIFFERS from the contender, so not timed"
    if "reason" in record:
        yield f"- **{record['title']}**: {record['reason']}"


if __name__ == "__main__":
    main()
