"""Toolkits and scripts compute the same with ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.questions import plugs
from tests.experiments.questions.support import rows_of


def test_rows(tmp_path: Path) -> None:
    rows = rows_of(plugs.QUESTION, tmp_path)
    assert "reason" not in rows
    assert {*rows["toolkit"]} == {"kronfluence", "captum", "opacus_script"}
    assert (rows["error"] < 1e-3).all()
    assert rows.groupby(["toolkit", "part"])["contender"].nunique().eq(2).all()


def test_scripts_that_fail_say_why(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise ValueError('no such thing')")
    call = plugs.Process([str(script)], "ours", 1, tmp_path)
    with pytest.raises(RuntimeError, match="no such thing"):
        call()


def test_missing_toolkit_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plugs.sys.modules, "captum.influence", None)
    rows = rows_of(
        plugs.QUESTION, tmp_path, lambda case: case.key["toolkit"] == "captum"
    )
    assert rows["reason"].str.contains("captum").all()
