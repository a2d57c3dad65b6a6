"""What does a step of training with curvature cost, beside SGD's?

A step is a forward pass, a backward pass and an update with momentum, in training mode;
each contender has a model of its own. Stock KFAC is our preconditioner with the factors
of curvlinops' patches, stock SINGD is singd with dense structures. A step renews
nothing, the factors, or everything: factors and inverses. Averages are matrices, as in
the long run; while there are few data, ours are low-rank, and faster. `factors-expand`
is a pass that averages factors, without a step, in ASDL and ours. After the first step,
factors are compared before they are inverted; gradients that were multiplied by
inverses may differ by what the damping allows. Memory counts what stays, too:
gradients, momentum, averages, inverses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, get_args

import pandas as pd

from experiments.contenders.optimizers import (
    FirstSteps,
    Method,
    Update,
    compare,
    contenders,
)
from experiments.harness.case import Case, Contest, Options, Row
from experiments.harness.question import Claim, Question
from experiments.harness.ratios import bars
from experiments.subjects.networks import Subject

WORKLOADS = (Subject("resnet18", 112), Subject("vgg19", 64))
METHODS: tuple[Method, ...] = get_args(Method)
UPDATES: dict[str, tuple[Update, ...]] = {
    "KFAC": ("nothing", "factors", "everything"),
    "SINGD": ("nothing", "everything"),
    "factors": ("factors",),
}
INTERVALS = (1, 10, 100)
"""Steps between those that renew everything, to average over."""
RATIO, BEYOND = "stock / ours", "the same, beyond SGD"
_ADDED = "what stock adds over ours"
_CASE = ["network", "method", "update"]


def cases(options: Options) -> Iterator[Case]:
    """List what steps renew, for each network and method."""
    for subject in (Subject("3c3d"),) if options.quick else WORKLOADS:
        size = 2 if options.quick else 8
        for method in METHODS:
            for update in UPDATES[method.partition("-")[0]]:
                key = {
                    "network": subject.title,
                    "batch_size": size,
                    "method": method,
                    "update": update,
                }
                yield Case(key, _rows, method, subject, size, update)


def _rows(
    method: Method, subject: Subject, batch_size: int, update: Update, options: Options
) -> Iterator[Row]:
    builds = contenders(method, subject, batch_size, update, options.device)
    contest = Contest(
        {name: build for name, build in builds.items() if name != "SGD"},
        baselines={"SGD": builds["SGD"]},
        read=lambda training: training.results(),
        compare=compare,
        weighed=False,
    )
    rows = list(contest.rows(options))
    able = [row["contender"] for row in rows if "reason" not in row]
    # what a step renews makes no difference to what stays
    if options.memory and update == "everything":
        first = {name: partial(FirstSteps, builds[name]) for name in able}
        held = Contest({}, baselines=first, timed=False).rows(options)
        of_contenders = {row["contender"]: row for row in held}
        rows = [row | of_contenders.get(row["contender"], {}) for row in rows]
    yield from rows


def _pivot(rows: pd.DataFrame, column: str = "seconds") -> pd.DataFrame:
    """Tabulate values by case and contender; the usual toolkit of a case is stock."""
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
            RATIO: seconds["stock"] / seconds["ours"],
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
    """Tabulate peaks in MiB, and ours over stock's."""
    peaks = _pivot(rows, "bytes").droplevel("update") / 2**20
    return peaks.assign(**{"ours / stock": peaks["ours"] / peaks["stock"]})


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tabulate times of steps, averages over many steps, and memory."""
    found = {"Time of a step": steps(rows)}
    if {"nothing", "everything"} <= set(rows["update"]):
        title = "Mean time of a step over SGD's, by interval of renewing"
        found[title] = averages(rows)
    if "bytes" in rows:
        found["Peak memory of the first two steps beyond the model, MiB"] = memory(rows)
    return found


def figures(rows: pd.DataFrame) -> Mapping[str, Any]:
    """Draw bars of steps that renew everything, over SGD's."""
    shown = steps(rows).query("update == 'everything'").droplevel("update")
    table = shown[["stock / SGD", "ours / SGD"]]
    return {"steps": bars(table, "Steps that renew everything: time over SGD's")}


def _least(method: str, update: str, column: str, rows: pd.DataFrame) -> float:
    own = steps(rows).xs((method, update), level=("method", "update"))
    return float(own[column].min())


def _largest_share(kind: str, rows: pd.DataFrame) -> float:
    own = memory(rows).reset_index()
    return float(own[own["method"].str.startswith(kind)]["ours / stock"].max())


QUESTION = Question(
    __doc__,
    cases,
    tables,
    figures,
    claims=(
        *(
            Claim(
                f"{method}, a step that renews {update}: {text}",
                partial(_least, method, update, column),
                "at least",
                least,
            )
            for method, update, text, column, least in (
                ("KFAC-expand", "factors", _ADDED, BEYOND, 2),
                ("KFAC-reduce", "factors", _ADDED, BEYOND, 1.33),
                ("SINGD-expand", "everything", "stock over ours", RATIO, 1),
                ("SINGD-reduce", "everything", "stock over ours", RATIO, 1),
            )
        ),
        *(
            Claim(
                f"{kind}: memory, ours over stock",
                partial(_largest_share, kind),
                "at most",
                1,
            )
            for kind in ("KFAC", "SINGD")
        ),
    ),
)
