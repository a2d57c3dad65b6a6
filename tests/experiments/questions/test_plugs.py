"""Toolkits and scripts compute the same with ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.questions import plugs
from tests.experiments.questions.support import rows_of


def tiny() -> nn.Module:
    """Make a network whose factors decompose in no time."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
    norm, second = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 5, stride=2, bias=False)
    pooled = nn.AdaptiveMaxPool2d((1, 1)), nn.Flatten(), nn.Linear(8, 10, bias=False)
    return nn.Sequential(first, norm, nn.ReLU(), second, nn.ReLU(), *pooled).eval()


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugs, "resnet9", tiny)


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
