"""How fast are gradients, their norms, GGN diagonals and Gram matrices?

``python -m experiments.quantities --help`` lists the options. Writes JSON and, beside
it, a Markdown report: ours against torch's own kernels, BackPACK's own functions,
``torch.func`` and Opacus, on the convolutions of real networks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from experiments import machine, storage
from experiments.contenders import conv_of
from experiments.gradient_contenders import (
    CONTENDERS,
    PLAIN,
    make_case,
    prepare_for_memory,
    reference,
)
from experiments.layers import Layer, select, smallest_of_each_family
from experiments.measure import (
    MIN_ROUNDS,
    MemoryNotMeasured,
    medians,
    number_of_rounds,
    peak_memory,
    preload,
    time_side_by_side,
)
from tn_extensions import functional

RESULTS = Path(__file__).parent / "results"
NETWORKS = ("resnet18", "allcnnc")
"""The networks that bars are stated for."""


class Part(NamedTuple):
    """A quantity on some layers.

    Args:
        quantity: What.
        num_vectors: How many vectors per sample; None without their axis.
        batch_size: Number of samples; few where stock holds a gradient per vector.
        positions: Largest number of output positions of a layer.
        channels: Smallest number of output channels.
    """

    quantity: str
    num_vectors: int | None = None
    batch_size: int = 8
    positions: float = float("inf")
    channels: int = 1

    @property
    def title(self) -> str:
        """What is measured, in a line."""
        if self.num_vectors is None:
            return f"{self.quantity}, batch {self.batch_size}"
        return f"{self.quantity}, V = {self.num_vectors}, batch {self.batch_size}"

    def covers(self, layer: Layer) -> bool:
        """Whether a layer belongs to it."""
        if layer.family == "transposed" and self.quantity not in PLAIN:
            return False  # no contender defines it
        small = prod(layer.conv.output_size) <= self.positions
        return small and layer.conv.out_channels >= self.channels


PARTS = (
    *map(Part, PLAIN),
    Part("per_sample_grad"),
    Part("per_sample_grad_norm"),
    Part("ggn_diagonal", 1),
    Part("ggn_diagonal", 10),
    Part("ggn_diagonal", 100, batch_size=2, positions=196),
    Part("ggn_diagonal", 1000, batch_size=1, positions=49, channels=512),
    Part("ggn_gram", 1),
    Part("ggn_gram", 10),
)


def measure(part: Part, layer: Layer, rounds: int, with_memory: bool) -> dict[str, Any]:
    """Check, time and weigh all contenders on one layer; a record for the JSON file."""
    quantity, num_vectors, batch_size = part[:3]
    case = make_case(layer, batch_size, num_vectors)
    exact = reference(quantity, case)
    scale = exact.square().mean().sqrt()
    outcomes: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Tensor]] = {}
    for name, compute in CONTENDERS[quantity].items():
        try:
            result = compute(case).double()
        except Exception as reason:  # whatever stops a toolkit is a result
            outcomes[name] = {"reason": f"{type(reason).__name__}: {reason}"[:200]}
            continue
        difference = (result.reshape(exact.shape) - exact).abs().max()
        outcomes[name] = {"error": float(difference / scale)}
        calls[name] = lambda compute=compute: compute(case)  # type: ignore[misc]
        del result
    del exact
    seconds = medians(time_side_by_side(calls, rounds))
    for name in calls:
        outcomes[name]["seconds"] = seconds[name]
        outcomes[name]["ratio"] = seconds[name] / seconds["ours"]
        if with_memory:
            prepare = partial(
                prepare_for_memory, quantity, name, layer, batch_size, num_vectors
            )
            try:
                outcomes[name]["memory_bytes"] = peak_memory(prepare)
            except MemoryNotMeasured as reason:
                outcomes[name]["reason"] = f"memory: {reason}"
    arguments = {} if num_vectors is None else {"num_vectors": num_vectors}
    conv = conv_of(case.module, case.x)
    plan = functional.plan(quantity, case.x, conv, **arguments)  # type: ignore[arg-type]
    return {
        "part": part.title,
        "quantity": quantity,
        "layer": layer.name,
        "network": layer.network,
        "batch_size": batch_size,
        "num_vectors": num_vectors,
        "plan": plan.summary,
        "contenders": outcomes,
    }


def render(content: dict[str, Any]) -> str:
    """A Markdown report of all records."""
    metadata, records = content["metadata"], content["records"]
    lines = ["# Gradients, their norms, GGN diagonals and Gram matrices", ""]
    lines += [f"- {key}: {value}" for key, value in metadata.items()]
    parts = {title: _of(records, title) for title in _titles(records)}
    lines += ["", "## Summary", ""]
    lines.append(
        "Time of theirs over ours, on all layers and on those of "
        f"{' and '.join(NETWORKS)}. `best` is the fastest of them on each layer."
    )
    head = ["", "against", "mean", "least", "mean, two networks", "least, two networks"]
    rows = [[*head, "memory, ours over theirs: mean", "most"]]
    for title, chosen in parts.items():
        names = _theirs(chosen)
        for name in [*names, "best"] if len(names) > 1 else names:
            rows.append([title, name, *_summary(chosen, name)])
    lines += ["", *_table(rows)]
    for title, chosen in parts.items():
        names = _theirs(chosen)
        rows = [["layer", "ours ms", *(f"{name} x" for name in names)]]
        rows[0] += ["MiB ours", *(f"MiB {name}" for name in names), "error", "plan"]
        for record in chosen:
            found = [record["contenders"].get(name, {}) for name in ("ours", *names)]
            rows.append(
                [
                    record["layer"],
                    _number(found[0].get("seconds"), 1e3),
                    *(_number(one.get("ratio")) for one in found[1:]),
                    *(_number(one.get("memory_bytes"), 2**-20) for one in found),
                    f"{found[0].get('error', float('nan')):.1e}",
                    record["plan"],
                ]
            )
        lines += ["", f"## {title}", "", *_table(rows)]
    return "\n".join(lines) + "\n"


def _titles(records: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(record["part"] for record in records))


def _of(records: Sequence[dict[str, Any]], title: str) -> list[dict[str, Any]]:
    return [record for record in records if record["part"] == title]


def _theirs(chosen: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in CONTENDERS[chosen[0]["quantity"]] if name != "ours"]


def _summary(chosen: Sequence[dict[str, Any]], name: str) -> Iterator[str]:
    """Mean and least ratio on all layers and on those of two networks, and memory."""
    for networks in (None, NETWORKS):
        layers = [r for r in chosen if networks is None or r["network"] in networks]
        found = [ratio for one in layers if (ratio := _ratio(one, name)) is not None]
        yield _number(geometric_mean(found) if found else None)
        yield _number(min(found, default=None))
    shares = []
    for record in chosen:
        ours, theirs = (
            record["contenders"].get(one, {}).get("memory_bytes")
            for one in ("ours", name)
        )
        if ours is not None and theirs is not None:
            shares.append(max(ours, 1) / max(theirs, 1))
    yield _number(geometric_mean(shares) if shares else None)
    yield _number(max(shares, default=None))


def _ratio(record: dict[str, Any], name: str) -> float | None:
    """Time of a contender, or of the fastest one, over ours."""
    theirs = {key: one for key, one in record["contenders"].items() if key != "ours"}
    if name != "best":
        ratio: float | None = theirs.get(name, {}).get("ratio")
        return ratio
    found = [one["ratio"] for one in theirs.values() if "ratio" in one]
    return min(found, default=None)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = rows
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


def _number(value: float | None, factor: float = 1.0) -> str:
    return "" if value is None else f"{value * factor:.3g}"


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure what the command line asks for; the path of the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.quantities", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--quantity", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    add("--num-vectors", nargs="+", type=int, help="only these, of GGN quantities")
    add("--layers", nargs="+", metavar="TEXT", help="only layers whose name has it")
    add(
        "--rounds",
        type=number_of_rounds,
        default=5,
        help=f"at least {MIN_ROUNDS} (default: 5)",
    )
    add("--threads", type=int, default=2)
    add(
        "--memory",
        nargs="*",
        choices=CONTENDERS,
        default=["ggn_diagonal"],
        help="measure peak memory of these quantities (default: ggn_diagonal)",
    )
    add("--quick", action="store_true", help="two samples, one layer a family")
    add("--output", type=Path, default=RESULTS / "quantities_cpu.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    preload("experiments.gradient_contenders")

    quick = args.quick and not args.layers
    layers = smallest_of_each_family() if quick else select(args.layers)
    cases = [
        (part._replace(batch_size=min(part.batch_size, 2)) if args.quick else part, one)
        for part in PARTS
        for one in layers
        if part.quantity in args.quantity
        and part.covers(one)
        and (
            part.num_vectors is None
            or not args.num_vectors
            or part.num_vectors in args.num_vectors
        )
    ]
    records: list[dict[str, Any]] = []
    content = {
        "metadata": machine.describe(torch.device("cpu"))
        | {"dtype": "float32", "rounds": args.rounds},
        "records": records,
    }
    with tqdm(cases, unit="layer", disable=None) as progress:
        for part, layer in progress:
            progress.set_postfix_str(f"{part.title} {layer.name}")
            with_memory = part.quantity in args.memory
            records.append(measure(part, layer, args.rounds, with_memory))
            # a long run that is cut short still leaves what it has measured
            storage.write_json(args.output, content)
    markdown = args.output.with_suffix(".md")
    storage.write_text(markdown, render(content))
    print(f"{args.output}\n{markdown}")
    return Path(args.output)


if __name__ == "__main__":
    main()
