"""Shares of the limit follow from a plan's cost and the machine's rates."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.questions import limit
from tests.experiments.questions.support import rows_of


def test_share_of_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "rates", lambda *arguments: (1e9, 1e12))
    rows = rows_of(limit.QUESTION, tmp_path)
    assert "reason" not in rows
    assert {*rows["quantity"]} == {*limit.QUANTITIES}
    for _, row in rows.iterrows():
        assert row["multiply_adds"] > 0 and row["bound"] == "arithmetic"
        assert row["limit_seconds"] == pytest.approx(row["multiply_adds"] / 1e9)
        assert row["share"] == pytest.approx(row["limit_seconds"] / row["seconds"])


def test_rates_are_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "_SIDE", 64)
    monkeypatch.setattr(limit, "_COPIED_BYTES", 2**16)
    limit.rates.cache_clear()
    assert all(rate > 1e5 for rate in limit.rates(limit.torch.device("cpu"), 5))
    limit.rates.cache_clear()
