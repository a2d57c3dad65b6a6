"""Measure what ``torch.compile`` makes of our operators, and of hooks on a model.

``python -m experiments.compiled --help`` lists the options. Times the KFAC factors of
ResNet-18's convolutions eagerly, by operators and compiled to one graph; calls of a
tiny layer; and passes of a model with and without a preconditioner's hooks. Writes JSON
and, beside it, a Markdown report.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from experiments import machine, storage
from experiments.contenders import make_input
from experiments.layers import LAYERS
from experiments.markdown import number, table
from experiments.measure import Call, medians, number_of_rounds, time_side_by_side
from experiments.models import Subject
from tn_extensions import Conv, functional
from tn_extensions.optim import KFACPreconditioner

RESULTS = Path(__file__).parent / "results"
TINY = Conv.make(2, 3, 3, (5, 5), 1, 1)
"""A layer with next to no arithmetic."""


def factors_of(
    convs: Sequence[Conv], inputs: Sequence[Tensor], call: Callable[..., Tensor]
) -> list[Tensor]:
    """Input factors of a network's convolutions."""
    return [call(x, conv) for x, conv in zip(inputs, convs, strict=True)]


def by_operator(x: Tensor, conv: Conv) -> Tensor:
    """KFAC-expand's factor by the operator."""
    result: Tensor = torch.ops.tn_extensions.kfac_expand(x, conv.to_ints())
    return result


def factors(quick: bool, batch_size: int, backend: str) -> dict[str, Call]:
    """ResNet-18's factors."""
    layers = [layer for layer in LAYERS if layer.network == "resnet18"]
    layers = [layer for layer in layers for _ in range(layer.count)]
    layers = layers[-2:] if quick else layers
    inputs = [make_input(layer.input_shape(batch_size), "cpu") for layer in layers]
    convs = [layer.conv for layer in layers]
    eager = partial(factors_of, convs, call=functional.kfac_expand)
    compiled = torch.compile(eager, fullgraph=True, backend=backend)
    return {
        "eager": partial(eager, inputs),
        "operators": partial(factors_of, convs, inputs, by_operator),
        "compiled": partial(compiled, inputs),
    }


def tiny() -> dict[str, Call]:
    """Calls of one layer, whose costs are Python's and the dispatcher's."""
    x = make_input((2, TINY.in_channels, *TINY.input_size), "cpu")
    numbers = TINY.to_ints()
    operator = torch.ops.tn_extensions.kfac_expand
    return {
        "eager": partial(functional.kfac_expand, x, TINY),
        "operators": lambda: operator(x, numbers),
    }


def in_training(subject: Subject) -> nn.Module:
    """Build the model; averages over all batches would break the graph."""
    model = subject.plain().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model


def passes(subject: Subject, batch_size: int, backend: str) -> dict[str, Call]:
    """Forward and backward passes of a model, with hooks that want no statistics."""
    images, labels = subject.batch(batch_size)
    criterion = nn.CrossEntropyLoss()

    def call(model: Callable[[Tensor], Tensor]) -> Tensor:
        loss: Tensor = criterion(model(images), labels)
        loss.backward()
        return loss.detach()

    def with_hooks() -> nn.Module:
        model = in_training(subject)
        preconditioner = KFACPreconditioner(model, factor_update_steps=10**6)
        call(model)
        preconditioner.step()  # the only one that updates factors
        return model

    models = {"": in_training(subject), " with hooks": with_hooks()}
    compiled = {
        name: torch.compile(model, backend=backend) for name, model in models.items()
    }
    return {
        **{f"eager{name}": partial(call, model) for name, model in models.items()},
        **{f"compiled{name}": partial(call, model) for name, model in compiled.items()},
    }


def graphs(calls: dict[str, Call]) -> dict[str, int]:
    """Count the graphs that a compiler makes of each call; all must agree."""
    found: dict[str, int] = {}
    expected = calls["eager"]()
    for name, call in calls.items():
        counters.clear()
        torch.testing.assert_close(call(), expected, rtol=1e-3, atol=1e-4)
        found[name] = counters["stats"]["unique_graphs"]
    return found


def render(content: dict[str, Any]) -> str:
    """A table for each question."""
    lines = ["# Compiled", ""]
    lines += [f"- {key}: {value}" for key, value in content["metadata"].items()]
    for record in content["records"]:
        rows = [["", "ms", "times eager", "graphs"]]
        eager = record["seconds"]["eager"]
        for name, seconds in record["seconds"].items():
            made = str(record["graphs"][name] or "")
            rows.append([name, number(seconds, 1e3), number(seconds / eager), made])
        lines += ["", f"## {record['title']}", "", table(rows)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure everything; the path of the JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compiled", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--rounds", type=number_of_rounds, default=9)
    add("--threads", type=int, default=2)
    add("--batch-size", type=int, default=8)
    add("--backend", default="inductor", help="of torch.compile")
    add("--quick", action="store_true", help="two layers, a small model")
    add("--output", type=Path, default=RESULTS / "compiled_cpu.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    subject = Subject("3c3d" if args.quick else "resnet18")
    records: list[dict[str, Any]] = []
    for title, calls in (
        ("kfac_expand of a tiny layer", tiny()),
        (
            "kfac_expand of ResNet-18",
            factors(args.quick, args.batch_size, args.backend),
        ),
        (f"passes of {subject.title}", passes(subject, args.batch_size, args.backend)),
    ):
        made = graphs(calls)
        seconds = medians(time_side_by_side(calls, args.rounds))
        records.append({"title": title, "seconds": seconds, "graphs": made})
    content = {
        "metadata": machine.describe(torch.device("cpu"))
        | {"dtype": "float32", "rounds": args.rounds, "batch size": args.batch_size},
        "records": records,
    }
    storage.write_json(args.output, content)
    markdown = args.output.with_suffix(".md")
    storage.write_text(markdown, render(content))
    print(f"{args.output}\n{markdown}")
    return Path(args.output)


if __name__ == "__main__":
    main()
