"""Where does one way of contracting a network overtake another?

``python -m experiments.crossovers --help`` lists the options. Times every way that the
planner considers while one size of a layer grows, and marks what it chose. Writes JSON
and, beside it, a Markdown report.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from experiments import machine, storage
from experiments.contenders import make_input
from experiments.measure import medians, number_of_rounds, time_side_by_side
from tn_extensions import Conv, functional
from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.candidate import Candidate
from tn_extensions.quantities import Quantity

RESULTS = Path(__file__).parent / "results"
_SLOWEST = 30.0
"""Ways that are estimated to take so many times as long as the best are left out."""


class Sweep(NamedTuple):
    """A quantity of 3x3 convolutions while one of their sizes grows.

    Args:
        quantity: What.
        varied: Which of the following fields grows.
        values: Its values.
        channels: Number of input and of output channels.
        pixels: Pixels per side.
        batch_size: Number of samples.
        num_vectors: Number of vectors per sample; none without their axis.
    """

    quantity: Quantity
    varied: str
    values: tuple[int, ...]
    channels: int = 128
    pixels: int = 7
    batch_size: int = 8
    num_vectors: int = 0

    @property
    def title(self) -> str:
        """What is fixed."""
        fixed = ("channels", "pixels", "batch_size", "num_vectors")
        sizes = ", ".join(
            f"{name} {getattr(self, name)}"
            for name in fixed
            if name != self.varied and getattr(self, name)
        )
        return f"{self.quantity}: {sizes}"


SWEEPS = (
    Sweep("per_sample_grad", "pixels", (4, 7, 14, 28, 56)),
    Sweep("per_sample_grad_norm", "pixels", (4, 7, 14, 20, 28)),
    Sweep("ggn_diagonal", "num_vectors", (1, 4, 16, 64, 256), batch_size=2),
    Sweep("ggn_diagonal", "pixels", (4, 7, 14, 28), num_vectors=10),
    Sweep("ggn_gram", "num_vectors", (1, 2, 4, 8, 16)),
    Sweep("ggn_gram", "pixels", (4, 7, 14, 28), num_vectors=10),
    Sweep("kfac_expand", "pixels", (4, 7, 14, 28, 56)),
)


def ways_of(sweep: Sweep, rounds: int) -> dict[str, Any]:
    """Time the best way of each kind; a record for the JSON file."""
    conv = Conv.make(sweep.channels, sweep.channels, 3, (sweep.pixels,) * 2, padding=1)
    x = make_input((sweep.batch_size, sweep.channels, *conv.input_size), "cpu")
    lead = (sweep.num_vectors,) if sweep.num_vectors else ()
    shape = (*lead, sweep.batch_size, sweep.channels, *conv.output_size)
    tensors = {"x": x, "g": make_input(shape, "cpu", seed=1)}
    arguments = {"num_vectors": sweep.num_vectors} if lead else {}
    plan = functional.plan(sweep.quantity, x, conv, **arguments)
    kinds: dict[str, Candidate] = {}
    for way in (plan.candidate, *plan.rejected):
        if way.cost.seconds <= _SLOWEST * plan.cost.seconds:
            kinds.setdefault(way.name, way)

    def run(way: Candidate) -> Tensor:
        out = x.new_empty(plan.network.shape)
        way.run(tensors, Accumulator(out, 1.0, fresh=True))
        return out

    expected = run(plan.candidate)
    calls: dict[str, Callable[[], Tensor]] = {}
    for name, way in kinds.items():
        difference = (run(way) - expected).abs().max() / expected.abs().max()
        if not difference < 1e-2:
            raise RuntimeError(f"{name} differs from {plan.candidate.name}")
        calls[name] = partial(run, way)
    return {
        "title": sweep.title,
        "varied": sweep.varied,
        "value": getattr(sweep, sweep.varied),
        "chosen": plan.candidate.name,
        "seconds": medians(time_side_by_side(calls, rounds)),
    }


def render(content: dict[str, Any]) -> str:
    """A table a sweep: milliseconds of each way, the planner's choice in bold."""
    records = content["records"]
    lines = ["# Crossovers", ""]
    lines += [f"- {key}: {value}" for key, value in content["metadata"].items()]
    lines += ["", "Milliseconds; bold is what the planner chose."]
    for title in dict.fromkeys(record["title"] for record in records):
        chosen = [record for record in records if record["title"] == title]
        names = dict.fromkeys(name for record in chosen for name in record["seconds"])
        head = [f"{chosen[0]['varied']}", *(str(one["value"]) for one in chosen)]
        lines += ["", f"## {title}", ""]
        lines += [_row(head), _row(["---"] * len(head))]
        lines += [_row([name, *(_cell(one, name) for one in chosen)]) for name in names]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(record: dict[str, Any], name: str) -> str:
    seconds = record["seconds"].get(name)
    if seconds is None:
        return ""
    text = f"{seconds * 1e3:.3g}"
    return f"**{text}**" if record["chosen"] == name else text


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure all sweeps; the path of the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.crossovers", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--rounds", type=number_of_rounds, default=5)
    add("--threads", type=int, default=2)
    add("--quick", action="store_true", help="two values a sweep, few channels")
    add("--output", type=Path, default=RESULTS / "crossovers_cpu.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    records: list[dict[str, Any]] = []
    content = {
        "metadata": machine.describe(torch.device("cpu"))
        | {"dtype": "float32", "rounds": args.rounds},
        "records": records,
    }
    points: list[Sweep] = []
    for sweep in SWEEPS:
        for value in sweep.values[:2] if args.quick else sweep.values:
            change: dict[str, Any] = {sweep.varied: value}
            if args.quick:
                change["channels"] = 8
            points.append(sweep._replace(**change))
    for point in tqdm(points, unit="point", disable=None):
        records.append(ways_of(point, args.rounds))
    storage.write_json(args.output, content)
    markdown = args.output.with_suffix(".md")
    storage.write_text(markdown, render(content))
    print(f"{args.output}\n{markdown}")
    return Path(args.output)


if __name__ == "__main__":
    main()
