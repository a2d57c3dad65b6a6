"""Quantities of a layer together, on small layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments import storage, together
from tn_extensions import Conv


def test_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"small": Conv.make(2, 3, 3, (5, 5), 1, 1)}
    monkeypatch.setattr(together, "LAYERS", small)
    output = tmp_path / "together.json"
    threads = str(torch.get_num_threads())
    arguments = ["--threads", threads, "--batch", "2", "--mode", "estimate"]
    assert together.main([*arguments, "--output", str(output)]) == output
    records = storage.read_json(output)["records"]
    assert [record["flow"] for record in records] == list(together.FLOWS)
    assert all(record["error"] < 1e-4 for record in records)
    assert all(min(record["seconds"].values()) > 0 for record in records)
