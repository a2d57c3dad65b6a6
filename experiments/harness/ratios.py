"""Stock and ours side by side: tables, claims and bars of how they compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from experiments.harness.measure import RESOLUTION_BYTES
from experiments.harness.question import Value


def side_by_side(
    rows: pd.DataFrame, value: str, index: Sequence[str], names: Sequence[str]
) -> pd.DataFrame:
    """Put contenders' values into columns; those that were not measured are empty."""
    table = rows.pivot_table(value, list(index), "contender", sort=False)
    return table.reindex(columns=list(names)).astype(float)


def times(
    rows: pd.DataFrame, index: Sequence[str], names: Sequence[str]
) -> pd.DataFrame:
    """Tabulate milliseconds, and the first contender's time over the second's."""
    seconds = side_by_side(rows, "seconds", index, names)
    theirs, ours = names[:2]
    ratio = {f"{theirs} over {ours}": seconds[theirs] / seconds[ours]}
    return (1e3 * seconds).add_suffix(", ms").assign(**ratio)


def memory(rows: pd.DataFrame, index: Sequence[str], baseline: str) -> pd.DataFrame:
    """Tabulate stock's and our MiB beyond a baseline's, and ours over stock's.

    Less than what a process resolves counts as that much.
    """
    held = side_by_side(rows, "bytes", index, ("stock", "ours", baseline))
    beyond = held[["stock", "ours"]].sub(held[baseline], axis=0).dropna()
    least = beyond.clip(lower=RESOLUTION_BYTES)
    share = least["ours"] / least["stock"]
    return (beyond.clip(lower=0) / 2**20).assign(share=share)


def least_ratio(
    index: Sequence[str],
    where: str | None = None,
    theirs: str = "stock",
    ours: str = "ours",
) -> Value:
    """Make a claim's value: the least ratio of two contenders' times."""

    def value(rows: pd.DataFrame) -> float:
        chosen = rows if where is None else rows.query(where)
        seconds = side_by_side(chosen, "seconds", index, (theirs, ours))
        return float((seconds[theirs] / seconds[ours]).min())

    return value


def largest_share(
    index: Sequence[str], baseline: str, where: str | None = None
) -> Value:
    """Make a claim's value: the largest share of stock's memory that ours takes."""

    def value(rows: pd.DataFrame) -> float:
        chosen = rows if where is None else rows.query(where)
        return float(memory(chosen, index, baseline)["share"].max())

    return value


def bars(ratios: Any, title: str) -> Any:
    """Draw ratios as bars on a logarithmic axis; one is a line.

    Args:
        ratios: A series or a frame, each column of which has a colour.
        title: Of the figure.
    """
    figure, axis = plt.subplots(figsize=(7, 0.18 * ratios.size + 1))
    if ratios.size:
        ratios.plot.barh(ax=axis, logx=True, xlabel="", ylabel="")
    axis.set_title(title)
    axis.axvline(1, color="gray", linewidth=0.8)
    axis.invert_yaxis()
    plt.close(figure)
    return figure
