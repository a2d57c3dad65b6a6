"""Is the chosen candidate the fastest of its plan, and where do candidates cross?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
import torch

from experiments.contenders.quantities import MAIN, SMALL, VARIOUS, Asked
from experiments.harness.case import Call, Case, Contest, Options, Row
from experiments.harness.question import Claim, Question, Value
from experiments.subjects.layers import Layer
from tn_extensions import Conv, planning

_SLOWEST = 5.0
"""Times the estimate of the cheapest candidate up to which others are run."""


class Sweep(NamedTuple):
    """A quantity of 3x3 convolutions while one of their sizes grows.

    Args:
        quantity: What.
        axis: Which size: ``"pixels"`` or ``"vectors"``.
        values: The sizes.
        batch_size: Number of samples.
    """

    quantity: str
    axis: str
    values: tuple[int, ...]
    batch_size: int = 8

    def asked(self, value: int, channels: int) -> Asked:
        """Make the point of a value."""
        pixels, vectors = (value, 10) if self.axis == "pixels" else (7, value)
        conv = Conv.make(channels, channels, 3, (pixels, pixels), padding=1)
        return Asked(self.quantity, Layer("sweep", conv), self.batch_size, vectors)


SWEEPS = (
    Sweep("kfac_expand", "pixels", (4, 7, 14, 28, 56)),
    Sweep("per_sample_grad", "pixels", (4, 7, 14, 28, 56)),
    Sweep("per_sample_grad_norm", "pixels", (4, 7, 14, 20, 28)),
    Sweep("ggn_diagonal", "pixels", (4, 7, 14, 28)),
    Sweep("ggn_diagonal", "vectors", (1, 4, 16, 64, 256), batch_size=2),
    Sweep("ggn_gram", "pixels", (4, 7, 14, 28)),
    Sweep("ggn_gram", "vectors", (1, 2, 4, 8, 16)),
)


def cases(options: Options) -> Iterator[Case]:
    """List quantities of layers of many kinds, then layers that grow."""
    for layer in (SMALL,) if options.quick else VARIOUS:
        for quantity in MAIN:
            asked = Asked(quantity, layer)
            yield Case({"sweep": "", "value": 0, **asked.key}, partial(_rows, asked))
    for sweep in SWEEPS[::3] if options.quick else SWEEPS:
        for value in sweep.values[:2] if options.quick else sweep.values:
            asked = sweep.asked(value, channels=8 if options.quick else 128)
            title = f"{sweep.quantity} over {sweep.axis}"
            key = {"sweep": title, "value": value, **asked.key}
            yield Case(key, partial(_rows, asked))


@torch.no_grad()
def _rows(asked: Asked, options: Options) -> Iterator[Row]:
    given = asked.tensors(options.device)
    with planning("measure"):
        asked.call(given)()
        plan = asked.plan(options.device)
    chosen = {"estimate": plan.estimated.label, "measure": plan.candidate.label}
    listed = {each.label: each for each in (plan.candidate, *plan.rejected)}
    most = _SLOWEST * plan.estimated.cost.seconds
    # networks of GGN quantities call their vectors as gradients
    tensors = {"g" if name == "S" else name: each for name, each in given.items()}
    able = {
        label: each
        for label, each in listed.items()
        if label in chosen.values()
        or each.cost.seconds <= most
        and each.peak * plan.target.itemsize <= plan.target.budget
    }

    def build(label: str, small: bool) -> Call:
        return partial(able[label].with_value(plan.network.shape).value, tensors)

    def notes(label: str) -> Row:
        return {
            "candidate": able[label].name,
            "estimated_seconds": able[label].cost.seconds,
            "held_elements": able[label].peak,
            **{f"chosen by {mode}": label == own for mode, own in chosen.items()},
        }

    contest = Contest(
        {label: partial(build, label) for label in able},
        tolerance=1e-2,  # they differ by rounding, by far less
        notes=notes,
        weighed=False,
    )
    yield from contest.rows(options)


def choices(rows: pd.DataFrame) -> pd.DataFrame:
    """Compare both choices with the fastest candidate, of each case a row."""
    measured = rows[rows["seconds"].notna()]
    index = ["sweep", "value", "quantity", "layer", "num_vectors"]
    found: dict[str, Any] = {}
    grouped = measured.groupby(index)
    fastest = measured.loc[grouped["seconds"].idxmin()].set_index(index)
    found["fastest"] = fastest["candidate"]
    for mode in ("estimate", "measure"):
        own = measured[measured[f"chosen by {mode}"] == True]  # noqa: E712
        own = own.set_index(index)
        found[f"chosen by {mode}"] = own["candidate"]
        found[f"{mode}: times the fastest"] = own["seconds"] / fastest["seconds"]
    return pd.DataFrame(found)


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Show how far choices are from the fastest, and times while a size grows."""
    compared = choices(rows)
    columns = [f"{mode}: times the fastest" for mode in ("estimate", "measure")]
    ratios = compared[columns]
    spread = ratios.groupby("quantity").agg([_geometric_mean, "max"])
    worst = compared[ratios.max(axis=1) > 1.1]
    found = {
        "Time of the choice over the fastest candidate's": spread,
        "Choices that took over 1.1 times as long": worst.sort_values(columns[0]),
    }
    for title, of_sweep in rows[rows["sweep"] != ""].groupby("sweep"):
        best = of_sweep.pivot_table("seconds", "candidate", "value", aggfunc="min")
        found[f"Milliseconds of {title}"] = best * 1e3
    return found


def figures(rows: pd.DataFrame) -> Mapping[str, Any]:
    """Draw the candidates' times while a size grows."""
    swept = rows[(rows["sweep"] != "") & rows["seconds"].notna()]
    titles = list(dict.fromkeys(swept["sweep"]))
    if not titles:
        return {}
    number = len(titles)
    figure, axes = plt.subplots(1, number, figsize=(4 * number, 4), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        of_sweep = swept[swept["sweep"] == title]
        best = of_sweep.pivot_table("seconds", "value", "candidate", aggfunc="min")
        best.plot(ax=axis, logx=True, logy=True, marker=".", title=title)
        own = of_sweep[of_sweep["chosen by estimate"] == True]  # noqa: E712
        axis.plot(own["value"], own["seconds"], "ko", fillstyle="none", markersize=10)
        axis.set(xlabel=title.split()[-1], ylabel="seconds")
        axis.legend(fontsize=6)
    plt.close(figure)
    return {"sweeps": figure}


def _geometric_mean(values: pd.Series[float]) -> float:
    return float(torch.tensor(values.to_numpy()).log().mean().exp())


def _of_layers(mode: str, worst: bool) -> Value:
    def value(rows: pd.DataFrame) -> float:
        ratios = choices(rows[rows["sweep"] == ""])[f"{mode}: times the fastest"]
        return float(ratios.max()) if worst else _geometric_mean(ratios.dropna())

    return value


QUESTION = Question(
    title="Is the chosen candidate the fastest of its plan?",
    reading=(
        "All candidates of a plan within the memory budget whose estimate is at most "
        "five times that of the cheapest, run side by side: on 17 layers of many "
        "kinds, then while the side of a map or the number of vectors grows. A plan "
        "chooses by *estimate*, or by what it *measures* at first use. Two candidates "
        "of one name differ in their shapes; the tables of growing sizes show the "
        "faster one. Circles in the figure are choices by estimate."
    ),
    cases=cases,
    tables=tables,
    figures=figures,
    claims=tuple(
        Claim(
            f"Choice by {mode} over the fastest: {'worst' if worst else 'mean'}",
            _of_layers(mode, worst),
            "at most",
            limit,
        )
        for mode, worst, limit in (
            ("estimate", False, 1.2),
            ("estimate", True, 2.5),
            ("measure", False, 1.05),
            ("measure", True, 1.5),
        )
    ),
)
