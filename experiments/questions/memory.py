"""How much memory do KFAC's factors take beyond themselves?

Peak memory beyond the input and the factor, in a fresh process, which resolves half a
MiB. Unfolding holds the input once for each entry of the kernel; the paper's claim is
that this overhead is gone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from experiments.contenders.quantities import Asked, contest
from experiments.harness.case import Case, Options, Row
from experiments.harness.measure import RESOLUTION_BYTES
from experiments.harness.question import Claim, Question
from experiments.questions.convolutions import layer_cases

_NAMES = ("stock", "einconv simplified", "ours")


def cases(options: Options) -> Iterator[Case]:
    """List the factors of all layers."""
    for name in ("kfac_reduce", "kfac_expand"):
        yield from layer_cases(name, _rows, options)


def _rows(asked: Asked, options: Options) -> Iterator[Row]:
    yield from contest(asked, options.device, _NAMES, timed=False).rows(options)


def _held(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series[bool]]:
    """Tabulate MiB, and say where ours holds more than stock does."""
    index = ["quantity", "network", "layer"]
    held = rows.pivot_table("bytes", index, "contender") / 2**20
    # processes differ by as much as the resolution, whatever they run
    return held, held["ours"] > held["stock"] + RESOLUTION_BYTES / 2**20


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """MiB by network, and the layers where ours holds more than stock."""
    held, is_more = _held(rows)
    return {
        "Largest of a network, MiB": held.groupby(["quantity", "network"]).max(),
        "Layers where ours holds more than stock, MiB": held[is_more],
    }


def _most_beyond_stock(rows: pd.DataFrame) -> float:
    held, is_more = _held(rows[rows["quantity"] == "kfac_reduce"])
    return float((held["ours"] / held["stock"]).where(is_more, 1.0).max())


def _share_without(rows: pd.DataFrame) -> float:
    held, _ = _held(rows[rows["quantity"] == "kfac_reduce"])
    return float((held["ours"] <= RESOLUTION_BYTES / 2**20).mean())


QUESTION = Question(
    __doc__,
    cases,
    tables,
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
)
