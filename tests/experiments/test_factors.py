"""The command line measures a layer from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments import factors, storage
from experiments.contenders import CONTENDERS, ConvModule
from experiments.layers import select

TINY = "allcnnc/192-100x6-k1"


def test_one_layer_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "factors.json"
    line = f"--quick --layers {TINY} --rounds 5 --threads 2 --output {output}"
    assert factors.main(line.split()) == output
    assert str(output) in capsys.readouterr().out

    content = storage.read_json(output)
    assert content["metadata"]["device"] == "cpu"
    assert content["metadata"]["threads"] == 2
    assert content["metadata"]["torch"] == torch.__version__
    records = {record["quantity"]: record for record in content["records"]}
    assert set(records) == set(CONTENDERS)
    for quantity, record in records.items():
        assert record["layer"]["name"] == TINY
        assert record["batch_size"] == 2
        assert record["plan"] and "\n" not in record["plan"]
        assert set(record["contenders"]) == set(CONTENDERS[quantity])
        for outcome in record["contenders"].values():
            assert outcome["reason"] is None
            assert len(outcome["rounds"]) == 5
            assert min(outcome["rounds"]) <= outcome["seconds"]
            assert outcome["ratio"] > 0
            assert outcome["memory_bytes"] >= 0
            assert max(outcome["error"], outcome["error_framed"]) < 1e-5
        assert record["contenders"]["ours"]["ratio"] == 1

    markdown = output.with_suffix(".md").read_text()
    assert f"| {TINY} | 1 |" in markdown
    assert "## Bars" in markdown


def test_a_contender_that_fails_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: ConvModule, x: torch.Tensor) -> None:
        raise IndexError("boom\nand more")

    monkeypatch.setitem(CONTENDERS["mean"], "unfold", fail)
    (layer,) = select([TINY])
    record = factors.measure_layer(
        "mean", layer, 2, torch.device("cpu"), rounds=5, with_memory=False
    )
    unfold, ours = (record["contenders"][name] for name in ("unfold", "ours"))
    assert unfold["reason"] == "IndexError: boom"
    assert unfold["seconds"] is unfold["ratio"] is unfold["error"] is None
    assert ours["reason"] is None
    assert ours["seconds"] > 0


def test_too_few_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        factors.main(["--rounds", "3"])
    assert "--rounds: must be at least 5, got 3" in capsys.readouterr().err
