"""How much memory do KFAC's factors take beyond themselves?"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd

from experiments.contenders.convolutions import Quantity, contenders, reference
from experiments.harness.case import Case, Contest, Options, Row
from experiments.harness.measure import RESOLUTION_BYTES
from experiments.harness.question import Claim, Question
from experiments.questions.convolutions import cases_of
from experiments.subjects.layers import Layer

QUANTITIES: tuple[Quantity, ...] = ("kfac_reduce", "kfac_expand")
_NAMES = ("stock", "einconv simplified", "ours")


def cases(options: Options) -> Iterator[Case]:
    """List the factors of all layers."""
    yield from cases_of(QUANTITIES, _rows, options)


def _rows(
    quantity: Quantity, layer: Layer, batch_size: int, options: Options
) -> Iterator[Row]:
    arguments = (quantity, layer, batch_size, options.device)
    builds = contenders(*arguments)
    some = {name: builds[name] for name in _NAMES}
    contest = Contest(some, partial(reference, *arguments), timed=False)
    yield from contest.rows(options)


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Bytes by network, and the layers where ours holds more than stock."""
    index = ["quantity", "network", "layer"]
    mebi = rows.pivot_table("bytes", index, "contender") / 2**20
    found = {"Largest of a network, MiB": mebi.groupby(["quantity", "network"]).max()}
    more = mebi[mebi["ours"] > mebi["stock"] + RESOLUTION_BYTES / 2**20]
    found["Layers where ours holds more than stock, MiB"] = more
    return found


def _bytes(rows: pd.DataFrame, quantity: str) -> pd.DataFrame:
    of_quantity = rows[rows["quantity"] == quantity]
    return of_quantity.pivot_table("bytes", ["network", "layer"], "contender")


def _most_beyond_stock(rows: pd.DataFrame) -> float:
    held = _bytes(rows, "kfac_reduce")
    more = held["ours"] > held["stock"] + RESOLUTION_BYTES
    # processes differ by as much as the resolution, whatever they run
    return float((held["ours"] / held["stock"]).where(more, 1.0).max())


def _share_without(rows: pd.DataFrame) -> float:
    held = _bytes(rows, "kfac_reduce")
    return float((held["ours"] <= RESOLUTION_BYTES).mean())


QUESTION = Question(
    title="How much memory do KFAC's factors take beyond themselves?",
    reading=(
        "Peak memory beyond the input and the factor, in a fresh process, which "
        "resolves half a MiB. Unfolding holds the input once for each entry of the "
        "kernel; the paper's claim is that this overhead is gone."
    ),
    cases=cases,
    tables=tables,
    claims=(
        Claim(
            "KFAC-reduce: ours over stock, the worst layer",
            _most_beyond_stock,
            "at most",
            1,
        ),
        Claim(
            "KFAC-reduce: share of layers with nothing beyond the factor",
            _share_without,
            "at least",
            0.5,
        ),
    ),
    preload=("experiments.contenders.convolutions",),
)
