"""The benchmark of the ways to contract a network, on few channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments import crossovers, storage
from experiments.crossovers import SWEEPS


def test_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "crossovers.json"
    threads = torch.get_num_threads()
    try:
        assert crossovers.main(["--quick", "--output", str(output)]) == output
    finally:
        torch.set_num_threads(threads)
    assert str(output) in capsys.readouterr().out
    records = storage.read_json(output)["records"]
    assert len(records) == 2 * len(SWEEPS)
    for record in records:
        assert record["chosen"] in record["seconds"]
        assert all(seconds > 0 for seconds in record["seconds"].values())
    names = {name.split("(")[0] for one in records for name in one["seconds"]}
    assert names >= {"squares", "crossed", "khatri-rao", "gram"}
    report = output.with_suffix(".md").read_text("utf-8")
    assert report.count("\n## ") == len(SWEEPS)
    assert report.count("**") == 2 * len(records)
