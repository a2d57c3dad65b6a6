"""Renders the JSON of ``experiments.tensor_dropout``; measures nothing.

``python -m experiments.tensor_dropout_report RESULT.json``
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiments import storage
from experiments.bars import Record, Verdict
from experiments.figures import Panel, line_chart
from experiments.markdown import bar_rows, number, spread, table
from experiments.report_command import write_reports
from experiments.training_report import points_of

EXACT = "exact"
"""The way to train that samples nothing."""
BATCH = "the batch itself"
"""In place of sampled axes: the error that a batch has without sampling."""
POINTS_BAR = 1.0
"""Of test accuracy that may be lost."""
SHOWN = 0.5
"""The share that tables of errors are of."""
_DRAWN = "bernoulli"
"""The sampler of the figure and of the first table."""

_ERRORS = (
    "Frobenius norm of the sampled gradient of a layer's weight less the exact one, "
    "over that of the exact one: a mean over draws. Several axes have equal shares, "
    "whose product is the share of the layer's input that is kept. An estimate of zero "
    f"has the error 1. `{BATCH}`: the gradient of all training images, in place of the "
    "sampled one."
)
_TRAINING = (
    "Each way to train got as many trials of its learning rate, all from the same "
    "seeds; the one of the least mean final training loss was run again from other "
    "seeds. `+-` is the standard deviation over seeds. The share in a name is that of "
    "the layers' inputs; `of all bytes` is what is saved for the backward pass over "
    "what exact training saves, activations' masks included; `of ReLU's` is over what "
    "it saves with `torch.nn.ReLU`, which holds no mask."
)
_MEMORY = (
    "KiB saved for the backward pass of a batch but for parameters, storages counted "
    "once. ReLU holds the next layer's input for itself; SiLU holds its own input, "
    "which no layer does; masked ReLU holds a byte for each entry."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report that the command line asks for."""
    write_reports("experiments.tensor_dropout_report", __doc__, write, arguments)


def write(result: Path) -> list[Path]:
    """Write a report and its figures beside a result file; their paths."""
    content = storage.read_json(result)
    report = result.with_suffix(".md")
    figures = {
        result.with_name(f"{result.stem}-errors.svg"): error_chart(content),
        result.with_name(f"{result.stem}-training.svg"): training_chart(content),
    }
    for path, text in figures.items():
        storage.write_text(path, text)
    storage.write_text(report, render(content, *(path.name for path in figures)))
    return [report, *figures]


def _by(records: Sequence[Record], *names: str) -> dict[tuple[Any, ...], list[Record]]:
    """Records of the same values, in the order of their first."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(record[name] for name in names), []).append(record)
    return found


def _shown(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.get("asked") == SHOWN]


def error_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """Errors of each axis at each layer and stage, of one share and sampler."""
    records = content["errors"]
    columns = list(_by(records, "step", "layer"))
    cells = {
        (record["axes"], record["step"], record["layer"]): record["error"]
        for record in records
        if record["axes"] == BATCH or record["sampler"] == _DRAWN
        if record.get("asked", SHOWN) == SHOWN
    }
    return [
        ["sampled", *(f"{layer}, step {step}" for step, layer in columns)],
        *(
            [axes, *(number(cells[axes, *column]) for column in columns)]
            for axes in dict.fromkeys(axes for axes, *_ in cells)
        ),
    ]


def sampler_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """Errors of each axis with each sampler, means over layers and stages."""
    found = _by(_shown(content["errors"]), "axes", "sampler")
    samplers = list(dict.fromkeys(sampler for _, sampler in found))
    return [
        ["sampled", *samplers],
        *(
            [
                axes,
                *(number(mean(r["error"] for r in found[axes, s])) for s in samplers),
            ]
            for axes in dict.fromkeys(axes for axes, _ in found)
        ),
    ]


def memory_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """Bytes of each way to train with each activation."""
    found = _by(content["memory"], "contender", "activation")
    activations = list(dict.fromkeys(activation for _, activation in found))
    return [
        ["trained with", *activations],
        *(
            [name, *(number(found[name, a][0]["bytes"], 2**-10) for a in activations)]
            for name in dict.fromkeys(name for name, _ in found)
        ),
    ]


def byte_shares(content: Mapping[str, Any], of: str) -> dict[str, float]:
    """Bytes of each way to train, as trained, over those of exact training.

    Args:
        content: What a result file holds.
        of: The activation of exact training.
    """
    found = _by(content["memory"], "activation", "contender")
    trained, names = (
        content["memory"][0]["activation"],
        _by(content["runs"], "contender"),
    )
    whole = found[of, EXACT][0]["bytes"]
    return {name: found[trained, name][0]["bytes"] / whole for (name,) in names}


def ends(content: Mapping[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """Final training losses and test accuracies of each way to train."""
    found = {}
    for (name,), runs in _by(content["runs"], "contender").items():
        lasts = [points_of(run)[-1] for run in runs]
        found[name] = [p.loss for p in lasts], [p.accuracy for p in lasts]
    return found


def points_lost(content: Mapping[str, Any]) -> dict[str, float]:
    """Points of mean test accuracy that ways to train lose to exact training."""
    accuracies = {name: mean(own) for name, (_, own) in ends(content).items()}
    return {
        name: 100 * (accuracies[EXACT] - own)
        for name, own in accuracies.items()
        if name != EXACT
    }


def verdicts(content: Mapping[str, Any]) -> Iterator[Verdict]:
    """All bars and what was measured."""
    data = content["metadata"]["data"]
    for name, lost in points_lost(content).items():
        text = f"{data}, {name}: points of test accuracy lost"
        yield Verdict(text, "at most", POINTS_BAR, lost)


def training_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """The table of all ways to train."""
    runs = _by(content["runs"], "contender")
    shares = byte_shares(content, content["memory"][0]["activation"])
    plain = byte_shares(content, "ReLU")
    head = ["trained with", "of all bytes", "of ReLU's", "final training loss"]
    return [
        [*head, "test accuracy %", "learning rate", "ms a step"],
        *(
            [
                name,
                number(shares[name]),
                number(plain[name]),
                spread(losses),
                spread(accuracies, 100),
                number(runs[name,][0]["lr"]),
                number(mean(_step_seconds(run) for run in runs[name,]), 1e3),
            ]
            for name, (losses, accuracies) in ends(content).items()
        ),
    ]


def _step_seconds(run: Record) -> float:
    last = points_of(run)[-1]
    return last.seconds / last.step


def summary(content: Mapping[str, Any]) -> str:
    """The tables of errors and of trainings."""
    tables = (error_rows, training_rows)
    return "\n\n".join(table(rows(content)) for rows in tables)


def render(content: Mapping[str, Any], errors: str, training: str) -> str:
    """A Markdown report, with names of figures."""
    metadata = content["metadata"]
    parts = [
        f"# Tensor dropout on {metadata['data']}, {metadata['device_name']}",
        "\n".join(f"- {key}: {value}" for key, value in metadata.items()),
        "## Errors of sampled gradients",
        _ERRORS,
        f"![{errors}]({errors})",
        f'Half of the input kept, sampler "{_DRAWN}":',
        table(error_rows(content)),
        "Half of the input kept, means over layers and stages:",
        table(sampler_rows(content)),
        "## Training",
        _TRAINING,
        f"![{training}]({training})",
        table(bar_rows(verdicts(content))),
        table(training_rows(content)),
        "## Saved bytes",
        _MEMORY,
        table(memory_rows(content)),
    ]
    return "\n\n".join(parts) + "\n"


def error_chart(content: Mapping[str, Any]) -> str:
    """Errors against the share that is kept, at the last stage, a panel a layer."""
    records = content["errors"]
    last = max(record["step"] for record in records)
    drawn = [r for r in records if r.get("sampler") == _DRAWN and r["step"] == last]
    panels = []
    for (layer,), own in _by(drawn, "layer").items():
        curves = {
            axes: [[(record["share"], record["error"]) for record in curve]]
            for (axes,), curve in _by(own, "axes").items()
        }
        panels.append(Panel(f"share of the input that is kept: {layer} layer", curves))
    title = f'Sampled gradients after {last} steps, sampler "{_DRAWN}"; 1: all is lost'
    return line_chart(title, "relative error", panels, mark=1.0)


def training_chart(content: Mapping[str, Any]) -> str:
    """Training loss and wrong labels against steps, each seed a curve."""
    losses: dict[str, list[list[tuple[float, float]]]] = {}
    wrong: dict[str, list[list[tuple[float, float]]]] = {}
    for run in content["runs"]:
        points, name = points_of(run), run["contender"]
        losses.setdefault(name, []).append([(p.step, p.loss) for p in points])
        wrong.setdefault(name, []).append([(p.step, 1 - p.accuracy) for p in points])
    title = f"Training on {content['metadata']['data']}, each seed a curve"
    panels = [
        Panel("steps: training loss", losses),
        Panel("steps: share of test images with wrong labels", wrong),
    ]
    return line_chart(title, "loss, share", panels)


if __name__ == "__main__":
    main()
