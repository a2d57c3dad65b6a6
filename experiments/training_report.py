"""Renders the JSON of ``experiments.training_comparison``; measures nothing.

``python -m experiments.training_report RESULT.json``
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
from experiments.training import Point, first_at

STEPS_BAR = 0.5
"""Of SGD's steps to its final training loss."""
SECONDS_BAR = 1.0
REFERENCE = "SGD"

_EXPLANATION = (
    "Each optimizer got as many trials, all from the same seeds; the one of the least "
    "mean final training loss was run again from other seeds, where all see the same "
    "initial weights and batches. `+-` is the standard deviation over seeds. The "
    "target is SGD's final training loss of the same seed; steps to it are those of "
    "the first evaluation at which the loss is no larger, and seconds without "
    "evaluations. Runs of a seed take turns of the steps between evaluations, so that "
    "`x of SGD's time` (a mean over seeds) means something on a machine that does "
    "other things, too. Losses, and accuracies before the end, are of the first images "
    "of their split."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report that the command line asks for."""
    write_reports("experiments.training_report", __doc__, write, arguments)


def write(result: Path) -> list[Path]:
    """Write a report and its figure beside a result file; their paths."""
    content = storage.read_json(result)
    figure, report = result.with_suffix(".svg"), result.with_suffix(".md")
    storage.write_text(figure, chart(content))
    storage.write_text(report, render(content, figure.name))
    return [report, figure]


class Outcome:
    """The runs of an optimizer, against SGD's.

    Args:
        runs: Its records, one a seed.
        targets: SGD's final training loss, steps and seconds to it, by seed.
    """

    def __init__(self, runs: Sequence[Record], targets: Mapping[int, Point]) -> None:
        self.kind: str = runs[0]["kind"]
        self.text: str = runs[0]["text"]
        points = {run["seed"]: points_of(run) for run in runs}
        lasts = [own[-1] for own in points.values()]
        self.losses = [last.loss for last in lasts]
        self.accuracies = [last.accuracy for last in lasts]
        self.step_seconds = mean(last.seconds / last.step for last in lasts)
        # where SGD diverged, or learned nothing, is no target
        hits = {
            seed: first_at(own, targets[seed].loss) if targets[seed].step else None
            for seed, own in points.items()
        }
        self.missed = [seed for seed, hit in hits.items() if hit is None]
        found = {seed: hit for seed, hit in hits.items() if hit is not None}
        self.hits = list(found.values())
        self.step_ratios = [h.step / targets[s].step for s, h in found.items()]
        self.second_ratios = [h.seconds / targets[s].seconds for s, h in found.items()]

    def over_seeds(self, values: Sequence[float]) -> float | None:
        """The mean, if all seeds reached the target."""
        return None if self.missed else mean(values)


def points_of(run: Record) -> list[Point]:
    """A run's evaluations."""
    return [Point(**point) for point in run["points"]]


def outcomes(content: Mapping[str, Any]) -> dict[str, Outcome]:
    """Of each optimizer."""
    runs: Sequence[Record] = content["runs"]
    targets = {}
    for run in runs:
        if run["kind"] == REFERENCE:
            points = points_of(run)
            hit = first_at(points, points[-1].loss)
            assert hit is not None
            # what others must reach is the end's loss, even where an earlier is less
            targets[run["seed"]] = hit._replace(loss=points[-1].loss)
    kinds = dict.fromkeys(run["kind"] for run in runs)
    return {
        kind: Outcome([run for run in runs if run["kind"] == kind], targets)
        for kind in kinds
    }


def verdicts(found: Mapping[str, Outcome]) -> Iterator[Verdict]:
    """All bars and what was measured."""
    reference = found[REFERENCE]
    for kind, own in found.items():
        if "KFAC" not in kind:
            continue
        text = f"{kind}, part of SGD's steps"
        yield Verdict(text, "at most", STEPS_BAR, own.over_seeds(own.step_ratios))
        text = f"{kind}, test accuracy less SGD's"
        gain = mean(own.accuracies) - mean(reference.accuracies)
        yield Verdict(text, "at least", 0.0, gain)
        text = f"{kind}, part of SGD's time (an aim)"
        yield Verdict(text, "at most", SECONDS_BAR, own.over_seeds(own.second_ratios))


def rows(found: Mapping[str, Outcome]) -> list[list[str]]:
    """The table of all optimizers."""
    head = ["optimizer", "final training loss", "test accuracy %", "ms a step"]
    head += ["steps to SGD's loss", "x of SGD's steps", "seconds", "x of SGD's time"]
    head += ["test accuracy % then"]
    return [
        head,
        *(
            [
                own.kind,
                spread(own.losses),
                spread(own.accuracies, 100),
                number(own.step_seconds, 1e3),
                number(own.over_seeds([hit.step for hit in own.hits])),
                number(own.over_seeds(own.step_ratios)),
                number(own.over_seeds([hit.seconds for hit in own.hits])),
                number(own.over_seeds(own.second_ratios)),
                number(own.over_seeds([hit.accuracy for hit in own.hits]), 100),
            ]
            for own in found.values()
        ),
    ]


def summary(content: Mapping[str, Any]) -> str:
    """The main table."""
    return table(rows(outcomes(content)))


def render(content: Mapping[str, Any], figure: str) -> str:
    """A Markdown report."""
    metadata, found = content["metadata"], outcomes(content)
    parts = [
        f"# Training on {metadata['data']}, {metadata['device_name']}",
        "\n".join(f"- {key}: {value}" for key, value in metadata.items()),
        _EXPLANATION,
        f"![{figure}]({figure})",
        "## Bars",
        table(bar_rows(verdicts(found))),
        "## Optimizers",
        table(rows(found)),
        "\n".join(f"- {kind}: {own.text}" for kind, own in found.items()),
        "## Search",
        table(
            [
                ["optimizer", "", "final training loss", "test accuracy %"],
                *map(_trial_row, content["search"]),
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _trial_row(trial: Record) -> list[str]:
    lasts = [Point(**last) for last in trial["lasts"]]
    loss = number(mean(last.loss for last in lasts))
    accuracy = number(mean(last.accuracy for last in lasts), 100)
    return [trial["kind"], trial["text"], loss, accuracy]


def chart(content: Mapping[str, Any]) -> str:
    """The loss of all runs, against steps and against time."""
    runs = [(run["kind"], points_of(run)) for run in content["runs"]]
    title = f"Training on {content['metadata']['data']}, each seed a curve"
    return loss_chart(title, runs)


def loss_chart(title: str, runs: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """Training losses against steps and against time.

    Args:
        title: Of the chart.
        runs: What each curve belongs to, and its evaluations.

    Returns:
        The SVG document.
    """
    by_step: dict[str, list[list[tuple[float, float]]]] = {}
    by_time: dict[str, list[list[tuple[float, float]]]] = {}
    for kind, points in runs:
        by_step.setdefault(kind, []).append([(p.step, p.loss) for p in points])
        by_time.setdefault(kind, []).append([(p.seconds, p.loss) for p in points])
    panels = [Panel("steps", by_step), Panel("seconds", by_time)]
    return line_chart(title, "training loss", panels)


if __name__ == "__main__":
    main()
