"""Ratios are of times of one case, and shares of memory are beyond a baseline."""

from __future__ import annotations

import pandas as pd
import pytest

from experiments.harness.measure import RESOLUTION_BYTES
from experiments.harness.ratios import Ratio, curves, memory, memory_claim, times

MIB = 2**20
ROWS = pd.DataFrame(
    {"kind": kind, "layer": layer, "contender": name, "seconds": s, "bytes": b}
    for kind, layer, of_contenders in (
        ("a", "x", {"stock": (4.0, 9 * MIB), "ours": (2.0, 3 * MIB)}),
        ("a", "y", {"stock": (3.0, 5 * MIB), "ours": (6.0, MIB)}),
        ("b", "x", {"stock": (9.0, 5 * MIB)}),
    )
    for name, (s, b) in (of_contenders | {"plain": (1.0, MIB)}).items()
)
CASE = ("kind", "layer")


def test_ratios_are_of_cases_that_have_both() -> None:
    ratios = Ratio(CASE).of(ROWS)
    assert ratios.to_dict() == {("a", "x"): 2.0, ("a", "y"): 0.5}
    table = times(ROWS, CASE, ("stock", "ours", "plain"))
    assert table["stock, ms"].tolist() == [4e3, 3e3, 9e3]
    assert table["stock over ours"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("where", "statistic", "measured", "holds"),
    [
        ("", "min", 0.5, "**no**"),
        ("", "median", 1.25, "yes"),
        ("layer == 'x'", "min", 2.0, "yes"),
        ("kind == 'b'", "min", None, "not measured"),
    ],
)
def test_claims_on_ratios(
    where: str, statistic: str, measured: float | None, holds: str
) -> None:
    found = Ratio(CASE).claim("fast", 1, where, statistic).check(ROWS)
    assert found["holds"] == holds and found["wanted"] == "at least 1"
    assert measured is None or found["measured"] == measured


def test_memory_is_beyond_the_baseline() -> None:
    held = memory(ROWS, CASE, "plain")
    assert held.loc[("a", "x")].tolist() == [8, 2, 0.25]
    # nothing counts as what is resolved
    assert held.loc[("a", "y")].tolist() == [4, 0, RESOLUTION_BYTES / (4 * MIB)]
    assert memory_claim("lean", 0.2, CASE, "plain").check(ROWS)["holds"] == "**no**"


def test_panels_have_a_curve_for_each_contender() -> None:
    rows = ROWS.assign(size=[1, 1, 1, 2, 2, 2, 1, 1])
    _, axes = curves(rows, "kind", "layer", "size", "seconds", "contender")
    lines = {panel: len(axis.get_lines()) for panel, axis in axes.items()}
    assert lines == {("a", "x"): 3, ("a", "y"): 3, ("b", "x"): 2, ("b", "y"): 0}
