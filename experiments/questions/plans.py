"""Is the chosen candidate the fastest of its plan?

All candidates of a plan within the memory budget whose estimate is at most five times
that of the cheapest, run side by side: on 17 layers of many kinds, then while the side
of a map or the number of vectors grows. A plan chooses by *estimate*, or by what it
*measures* at first use. Two candidates of one name differ in their shapes; the tables
of growing sizes show the faster one. Circles in the figure are choices by estimate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from experiments.contenders.quantities import MAIN, SMALL, VARIOUS, Asked
from experiments.harness.case import Case, Contest, Options, Row
from experiments.harness.measure import Call
from experiments.harness.question import Claim, Question
from experiments.harness.ratios import curves
from experiments.subjects.layers import Layer
from tn_extensions import Conv, planning

_SLOWEST = 5.0
"""Times the estimate of the cheapest candidate up to which others are run."""
SWEEPS: dict[tuple[str, str], tuple[int, ...]] = {
    ("kfac_expand", "pixels"): (4, 7, 14, 28, 56),
    ("per_sample_grad", "pixels"): (4, 7, 14, 28, 56),
    ("per_sample_grad_norm", "pixels"): (4, 7, 14, 20, 28),
    ("ggn_diagonal", "pixels"): (4, 7, 14, 28),
    ("ggn_diagonal", "vectors"): (1, 4, 16, 64, 256),
    ("ggn_gram", "pixels"): (4, 7, 14, 28),
    ("ggn_gram", "vectors"): (1, 2, 4, 8, 16),
}
"""Quantities of 3x3 convolutions, and the sizes of what grows."""
MODES = ("estimate", "measure")


def cases(options: Options) -> Iterator[Case]:
    """List quantities of layers of many kinds, then layers that grow."""
    quick = options.quick
    for layer in (SMALL,) if quick else VARIOUS:
        for quantity in MAIN:
            asked = Asked(quantity, layer)
            yield Case({"sweep": "", "value": 0, **asked.key}, _rows, asked)
    for quantity, axis in [*SWEEPS][:: 3 if quick else 1]:
        for value in SWEEPS[quantity, axis][: 2 if quick else None]:
            pixels, vectors = (value, 10) if axis == "pixels" else (7, value)
            # stock's hundreds of vectors for each sample would not fit
            size = 2 if (quantity, axis) == ("ggn_diagonal", "vectors") else 8
            channels = 8 if quick else 128
            conv = Conv.make(channels, channels, 3, (pixels, pixels), padding=1)
            asked = Asked(quantity, Layer("sweep", conv), size, vectors)
            key = {"sweep": f"{quantity} over {axis}", "value": value, **asked.key}
            yield Case(key, _rows, asked)


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
    index = ["sweep", "value", "quantity", "layer", "num_vectors"]
    measured = rows[rows["seconds"].notna()].set_index(index)
    fastest = measured.sort_values("seconds").groupby(index).head(1)
    found: dict[str, Any] = {"fastest": fastest["candidate"]}
    for mode in MODES:
        own = measured[measured[f"chosen by {mode}"].eq(True)]
        found[f"chosen by {mode}"] = own["candidate"]
        found[f"{mode}: times the fastest"] = own["seconds"] / fastest["seconds"]
    return pd.DataFrame(found)


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Show how far choices are from the fastest, and times while a size grows."""
    compared = choices(rows)
    ratios = compared[[f"{mode}: times the fastest" for mode in MODES]]
    worst = compared[ratios.max(axis=1) > 1.1]
    spread = ratios.groupby("quantity").agg([_geometric_mean, "max"])
    found = {
        "Time of the choice over the fastest candidate's": spread,
        "Choices that took over 1.1 times as long": worst.sort_values(
            ratios.columns[0]
        ),
    }
    for title, of_sweep in rows[rows["sweep"] != ""].groupby("sweep"):
        best = of_sweep.pivot_table("seconds", "candidate", "value", aggfunc="min")
        found[f"Milliseconds of {title}"] = best * 1e3
    return found


def figures(rows: pd.DataFrame) -> Mapping[str, Any]:
    """Draw the candidates' times while a size grows."""
    swept = rows[rows["sweep"] != ""].assign(all="")
    if not len(swept):
        return {}
    figure, axes = curves(swept, "all", "sweep", "value", "seconds", "candidate")
    for (_, title), axis in axes.items():
        own = swept[(swept["sweep"] == title) & swept["chosen by estimate"].eq(True)]
        axis.plot(own["value"], own["seconds"], "ko", fillstyle="none", markersize=10)
    return {"sweeps": figure}


def _geometric_mean(values: pd.Series[float]) -> float:
    return float(np.exp(np.log(values.dropna()).mean()))


def _of_layers(mode: str, statistic: str, rows: pd.DataFrame) -> float:
    ratios = choices(rows[rows["sweep"] == ""])[f"{mode}: times the fastest"]
    return ratios.max() if statistic == "worst" else _geometric_mean(ratios)


QUESTION = Question(
    __doc__,
    cases,
    tables,
    figures,
    claims=tuple(
        Claim(
            f"Choice by {mode} over the fastest: {statistic}",
            partial(_of_layers, mode, statistic),
            "at most",
            limit,
        )
        for mode, statistic, limit in (
            ("estimate", "mean", 1.2),
            ("estimate", "worst", 2.5),
            ("measure", "mean", 1.05),
            ("measure", "worst", 1.5),
        )
    ),
)
