"""Tables, claims and figures of contenders side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from experiments.harness.measure import RESOLUTION_BYTES
from experiments.harness.question import Claim


def side_by_side(
    rows: pd.DataFrame, value: str, index: Sequence[str], names: Sequence[str]
) -> pd.DataFrame:
    """Put contenders' values into columns; those that were not measured are empty."""
    if value not in rows:  # nobody was able
        rows = rows.assign(**{value: float("nan")})
    table = rows.pivot_table(value, list(index), "contender", sort=False)
    return table.reindex(columns=list(names)).astype(float)


@dataclass(frozen=True)
class Ratio:
    """The time of one contender over another's.

    Args:
        index: Columns that tell a case from others.
        theirs: The one contender.
        ours: The other.
    """

    index: Sequence[str]
    theirs: str = "stock"
    ours: str = "ours"

    def of(self, rows: pd.DataFrame) -> pd.Series[float]:
        """Divide, for each case that has both."""
        seconds = side_by_side(rows, "seconds", self.index, (self.theirs, self.ours))
        return (seconds[self.theirs] / seconds[self.ours]).dropna().rename("ratio")

    def claim(
        self, text: str, least: float, where: str = "", statistic: str = "min"
    ) -> Claim:
        """Claim that the least ratio, or another statistic, is so large.

        Args:
            text: The claim.
            least: The limit.
            where: Selects rows, as pandas' ``query`` does.
            statistic: A method of a series.
        """

        def value(rows: pd.DataFrame) -> float:
            ratios = self.of(rows.query(where) if where else rows)
            return float(getattr(ratios, statistic)())

        return Claim(text, value, "at least", least)


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


def memory_claim(
    text: str, most: float, index: Sequence[str], baseline: str, where: str = ""
) -> Claim:
    """Claim that our share of stock's memory is so small; see :func:`memory`."""

    def value(rows: pd.DataFrame) -> float:
        chosen = rows.query(where) if where else rows
        return float(memory(chosen, index, baseline)["share"].max())

    return Claim(text, value, "at most", most)


def bars(values: Any, title: str) -> Any:
    """Draw ratios as bars on a logarithmic axis; one is a line.

    Args:
        values: A series or a frame, each column of which has a colour.
        title: Of the figure.
    """
    figure, axis = plt.subplots(figsize=(7, 0.18 * values.size + 1))
    if values.size:
        values.plot.barh(ax=axis, logx=True, xlabel="", ylabel="")
    axis.set_title(title)
    axis.axvline(1, color="gray", linewidth=0.8)
    axis.invert_yaxis()
    plt.close(figure)
    return figure


def curves(
    rows: pd.DataFrame, down: str, across: str, x: str, y: str, lines: str
) -> tuple[Any, dict[tuple[str, str], Any]]:
    """Draw curves on logarithmic axes, in a grid of panels.

    Args:
        rows: The rows; the least of equal points is drawn.
        down: Column by which lines of panels differ.
        across: Column by which panels of a line differ.
        x: Column.
        y: Column.
        lines: Column by which curves of a panel differ.

    Returns:
        The figure, and its axes by the values of both columns.
    """
    rows = rows[rows[y].notna()]
    height, width = rows[down].unique(), rows[across].unique()
    size = (3.2 * len(width), 2.8 * len(height))
    figure, grid = plt.subplots(
        len(height), len(width), figsize=size, squeeze=False, layout="constrained"
    )
    axes = {
        (row, column): grid[i][j]
        for i, row in enumerate(height)
        for j, column in enumerate(width)
    }
    panels = dict(iter(rows.groupby([down, across])))
    for (row, column), axis in axes.items():
        if (row, column) not in panels:
            axis.set_axis_off()
            continue
        table = panels[row, column].pivot_table(y, x, lines, aggfunc="min", sort=False)
        table.sort_index().plot(ax=axis, logx=True, logy=True, marker=".")
        axis.set(title=f"{row}\n{column}".strip(), xlabel=x, ylabel=y)
        axis.legend(fontsize=6)
    plt.close(figure)
    return figure, axes
