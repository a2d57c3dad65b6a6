"""Contenders side by side: a column each, and bars of how they compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd


def side_by_side(
    rows: pd.DataFrame, value: str, index: Sequence[str], names: Sequence[str]
) -> pd.DataFrame:
    """Put the contenders' values into columns.

    Args:
        rows: The rows.
        value: What was measured, such as ``"seconds"``.
        index: Columns that tell cases apart.
        names: The contenders; one that was not measured has an empty column.
    """
    if value not in rows:
        rows = rows.assign(**{value: float("nan")})
    table = rows.pivot_table(value, list(index), "contender", sort=False)
    return table.reindex(columns=list(names)).astype(float)


def bars(ratios: Any, title: str) -> Any:
    """Draw ratios as bars on a logarithmic axis; one is a line.

    Args:
        ratios: A series or a frame, whose columns are bars of a colour.
        title: Of the figure.
    """
    count = max(ratios.size, 1)
    figure, axis = plt.subplots(figsize=(7, 0.18 * count + 0.9))
    if len(ratios):
        ratios.plot.barh(ax=axis, logx=True, xlabel="", ylabel="")
    axis.set_title(title)
    axis.axvline(1, color="gray", linewidth=0.8)
    axis.invert_yaxis()
    plt.close(figure)
    return figure
