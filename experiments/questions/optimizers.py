"""What does a step of training with curvature cost, beside SGD's?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, get_args

import matplotlib.pyplot as plt
import pandas as pd

from experiments.contenders.optimizers import Method, Update, contenders
from experiments.harness.case import Case, Contest, Options, Row
from experiments.harness.question import Claim, Question
from experiments.subjects.networks import Subject

WORKLOADS = (Subject("resnet18", 112), Subject("vgg19", 64))
BATCH_SIZE = 8
METHODS: tuple[Method, ...] = get_args(Method)
UPDATES: dict[str, tuple[Update, ...]] = {
    "KFAC": ("nothing", "factors", "everything"),
    "SINGD": ("nothing", "everything"),
    "factors": ("factors",),
}
INTERVALS = (1, 10, 100)
"""Steps between those that renew everything, to average over."""
BEYOND = "the same, beyond SGD"
_CASE = ["network", "method", "update"]


def cases(options: Options) -> Iterator[Case]:
    """List what steps renew, for each network and method."""
    for subject in (Subject("3c3d"),) if options.quick else WORKLOADS:
        for method in METHODS:
            for update in UPDATES[method.partition("-")[0]]:
                key = {
                    "network": subject.title,
                    "batch_size": 2 if options.quick else BATCH_SIZE,
                    "method": method,
                    "update": update,
                }
                yield Case(key, partial(_rows, subject, method, update))


def _rows(
    subject: Subject, method: Method, update: Update, options: Options
) -> Iterator[Row]:
    batch_size = 2 if options.quick else BATCH_SIZE
    builds = contenders(method, subject, batch_size, update, options.device)
    contest = Contest(
        builds,
        baselines={"SGD": builds.pop("SGD")},
        read=lambda values: values(),
        # inverses multiply rounding errors, and the second step those of the first
        tolerance=1e-2,
        # what a step renews makes no difference to what stays
        weighed=update == "everything" and not method.startswith("factors"),
    )
    yield from contest.rows(options)


def _pivot(rows: pd.DataFrame, column: str = "seconds") -> pd.DataFrame:
    """Values by case and contender; the usual toolkit, whichever it is, is stock."""
    renamed = rows.replace({"contender": {"ASDL": "stock"}})
    return renamed.pivot_table(column, _CASE, "contender", sort=False)


def steps(rows: pd.DataFrame) -> pd.DataFrame:
    """Compare steps: over SGD's, and what curvature adds to SGD's, stock over ours."""
    seconds = _pivot(rows).dropna()
    beyond = seconds.sub(seconds["SGD"], axis=0)
    return pd.DataFrame(
        {
            "SGD ms": 1e3 * seconds["SGD"],
            "stock / SGD": seconds["stock"] / seconds["SGD"],
            "ours / SGD": seconds["ours"] / seconds["SGD"],
            "stock / ours": seconds["stock"] / seconds["ours"],
            BEYOND: beyond["stock"] / beyond["ours"],
        }
    )


def averages(rows: pd.DataFrame) -> pd.DataFrame:
    """Average over steps, of which some renew everything and others nothing."""
    seconds = _pivot(rows).dropna().unstack("update")
    found = {}
    for name in ("stock", "ours"):
        never, always = (seconds[name, each] for each in ("nothing", "everything"))
        for interval in INTERVALS:
            mean = never + (always - never) / interval
            found[f"{name}, every {interval}"] = mean / seconds["SGD", "nothing"]
    return pd.DataFrame(found).dropna()


def memory(rows: pd.DataFrame) -> pd.DataFrame:
    """Peaks in MiB, and ours over stock's."""
    peaks = _pivot(rows, "bytes").droplevel("update") / 2**20
    return peaks.assign(**{"ours / stock": peaks["ours"] / peaks["stock"]})


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tabulate times of steps, averages over many steps, and memory."""
    found = {"Time of a step": steps(rows)}
    if {"nothing", "everything"} <= set(rows["update"]):
        found["Mean time of a step over SGD's, by interval of renewing"] = averages(
            rows
        )
    if "bytes" in rows:
        found["Peak memory of the first two steps beyond the model, MiB"] = memory(rows)
    return found


def figures(rows: pd.DataFrame) -> Mapping[str, Any]:
    """Bars of steps that renew everything, over SGD's."""
    table = steps(rows)
    table = table[table.index.get_level_values("update") == "everything"]
    if table.empty:
        return {}
    shown = table[["stock / SGD", "ours / SGD"]].droplevel("update")
    shown.index = [f"{network}\n{method}" for network, method in shown.index]
    figure, axis = plt.subplots(figsize=(1.1 * len(shown) + 2, 3.4))
    shown.plot.bar(ax=axis, rot=60)
    axis.axhline(1, color="gray", linewidth=0.8)
    axis.set(ylabel="time of a step over SGD's")
    plt.close(figure)
    return {"steps": figure}


def _claims() -> Iterator[Claim]:
    def least(method: str, update: str, column: str, rows: pd.DataFrame) -> float:
        own = steps(rows).xs((method, update), level=("method", "update"))
        return float(own[column].min())

    def most(kind: str, rows: pd.DataFrame) -> float:
        own = memory(rows).reset_index()
        return float(own[own["method"].str.startswith(kind)]["ours / stock"].max())

    for method, limit in (("KFAC-expand", 2), ("KFAC-reduce", 1.33)):
        text = f"{method}, a step that renews factors: what stock adds over ours"
        value = partial(least, method, "factors", BEYOND)
        yield Claim(text, value, "at least", limit)
    for method in METHODS[2:4]:
        text = f"{method}, a step that renews everything: stock over ours"
        value = partial(least, method, "everything", "stock / ours")
        yield Claim(text, value, "at least", 1)
    for kind in ("KFAC", "SINGD"):
        text = f"{kind}: memory, ours over stock"
        yield Claim(text, partial(most, kind), "at most", 1)


QUESTION = Question(
    title="What does a step of training with curvature cost, beside SGD's?",
    reading=(
        "A step is a forward pass, a backward pass and an update with momentum, in "
        "training mode; each contender has a model of its own. Stock KFAC is our "
        "preconditioner with the factors of curvlinops' patches, stock SINGD is singd "
        "with dense structures. A step renews nothing, the factors, or everything: "
        "factors and inverses. Averages are matrices, as in the long run; while there "
        "are few data, ours are low-rank, and faster. `factors-expand` is a pass that "
        "averages factors, without a step, in ASDL and ours. Memory counts what stays, "
        "too: gradients, momentum, averages, inverses."
    ),
    cases=cases,
    tables=tables,
    figures=figures,
    claims=tuple(_claims()),
    preload=("experiments.contenders.optimizers", "torchvision", "singd"),
)
