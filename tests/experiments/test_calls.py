"""Costs of calls beyond their arithmetic, on small layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments import calls, storage
from experiments.calls import BARS, QUANTITIES
from experiments.cases import COUNTED, network_layers
from tn_extensions import Conv

SMALL = {"small": Conv.make(2, 3, 3, (5, 5), 1, 1)}


def test_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calls, "COUNTED", SMALL)
    monkeypatch.setattr(calls, "TINY", SMALL)
    monkeypatch.setattr(calls, "LOADED", ("192-100x6-k1",))
    monkeypatch.setattr(calls, "network_layers", SMALL.items)
    output = tmp_path / "calls.json"
    threads = torch.get_num_threads()
    arguments = ["--rounds", "5", "--threads", str(threads), "--output", str(output)]
    calls.main([*arguments, "--only", "^operators"])
    assert calls.main([*arguments, "--only", "kfac_reduce", "--resume"]) == output
    assert str(output) in capsys.readouterr().out
    records = storage.read_json(output)["records"]
    assert not any("reason" in record for record in records)
    counted = [one for one in records if one["question"] == "operators"]
    assert len(counted) == len(QUANTITIES) - 1
    assert all(one["operators"] >= 1 for one in counted)
    for bar in BARS:
        assert bar.judge(records).value is not None
    report = output.with_suffix(".md").read_text("utf-8")
    assert report.count("\n## ") == len(BARS)


def test_layers() -> None:
    assert len(COUNTED) == 9
    found = network_layers()
    assert len({name.split("/")[0] for name, _ in found}) == 9
    assert len({conv for _, conv in found}) == len(found)
