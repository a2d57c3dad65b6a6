"""The benchmark of what is compiled, with few layers and an eager backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments import compiled, storage


def test_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "compiled.json"
    threads = torch.get_num_threads()
    options = ["--quick", "--rounds", "5", "--batch-size", "2", "--backend", "eager"]
    torch.compiler.reset()
    try:
        assert compiled.main([*options, "--output", str(output)]) == output
    finally:
        torch.set_num_threads(threads)
    assert str(output) in capsys.readouterr().out
    tiny, factors, passes = storage.read_json(output)["records"]
    assert [*tiny["seconds"]] == ["eager", "operators"]
    assert factors["graphs"] == {"eager": 0, "operators": 0, "compiled": 1}
    assert passes["graphs"]["compiled"] == 1
    assert passes["graphs"]["compiled with hooks"] != 1
    assert output.with_suffix(".md").read_text("utf-8").count("\n## ") == 3
