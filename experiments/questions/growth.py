"""How does the cost of curvature grow with the sizes of a layer?

One size grows, the others stay at a batch of 8, 64 channels, 28 pixels a side, a 3x3
kernel and 10 classes. Exponents are slopes of straight lines fitted to the logarithms:
1 is linear, 2 is quadratic. *Stock* unfolds: as BackPACK for gradients and diagonals.
Its input factor holds K^2 times the input, and multiplies K^4 numbers for each pair of
channels and each pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.contenders.quantities import Asked, contest
from experiments.harness.case import Case, Options, Row
from experiments.harness.measure import RESOLUTION_BYTES
from experiments.harness.question import Question
from experiments.harness.ratios import Ratio, curves
from experiments.subjects.layers import Layer
from tn_extensions import Conv

QUANTITIES = ("kfac_expand", "kfac_reduce", "per_sample_grad", "ggn_diagonal")
BASE = {"batch": 8, "channels": 64, "side": 28, "kernel": 3, "classes": 10}
AXES = {
    "batch": (1, 2, 4, 8, 16, 32),
    "channels": (8, 16, 32, 64, 128, 256),
    "side": (7, 14, 28, 56),
    "kernel": (1, 3, 5, 7),
    "classes": (1, 3, 10, 30, 100),
}
_QUICK = {"batch": 2, "channels": 4, "side": 8, "kernel": 3, "classes": 2}


def cases(options: Options) -> Iterator[Case]:
    """List all quantities while one size grows."""
    base = _QUICK if options.quick else BASE
    for quantity in QUANTITIES:
        for axis, values in AXES.items():
            if axis == "classes" and quantity != "ggn_diagonal":
                continue
            for value in values[:2] if options.quick else values:
                sizes = base | {axis: value}
                channels, side, kernel = (
                    sizes[name] for name in ("channels", "side", "kernel")
                )
                conv = Conv.make(
                    channels, channels, kernel, (side, side), padding=kernel // 2
                )
                layer = Layer("growth", conv)
                asked = Asked(quantity, layer, sizes["batch"], sizes["classes"])
                key = {"quantity": quantity, "axis": axis, "value": value}
                yield Case(key, _rows, asked)


def _rows(asked: Asked, options: Options) -> Iterator[Row]:
    names = ("stock", "ours", "ours, measured")
    own = contest(asked, options.device, names, weighed=not options.quick)
    yield from own.rows(options)


def exponents(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Fit ``column = c * value ** exponent``, by least squares of logarithms."""
    index = ["quantity", "axis", "contender"]
    # less memory than is resolved tells nothing
    least = RESOLUTION_BYTES if column == "bytes" else 0
    rows = rows[rows[column] > least]
    grouped = rows[rows.groupby(index)["value"].transform("nunique") > 1]
    fitted = {
        key: np.polyfit(np.log(part["value"]), np.log(part[column]), 1)[0]
        for key, part in grouped.groupby(index)
    }
    if not fitted:
        return pd.DataFrame()
    return pd.Series(fitted).rename_axis(index).unstack("contender")


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Fit exponents, and compare the ends of each axis."""
    found = {"Exponents of time": exponents(rows, "seconds")}
    if "bytes" in rows:
        title = "Exponents of memory beyond inputs and results"
        found[title] = exponents(rows, "bytes")
    ratio = Ratio(("quantity", "axis", "value"), ours="ours, measured").of(rows)
    for axis, part in ratio.groupby("axis"):
        table = part.droplevel("axis").unstack("value")
        found[f"Time of stock over ours, measured, over {axis}"] = table
    return found


def figures(rows: pd.DataFrame) -> Mapping[str, Any]:
    """Draw times over sizes."""
    figure, _ = curves(rows, "quantity", "axis", "value", "seconds", "contender")
    return {"times": figure}


QUESTION = Question(__doc__, cases, tables, figures)
