"""The comparison of the planner's choices with all candidates, on a small layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments import plans, storage
from experiments.cases import PLANNED
from experiments.plans import QUANTITIES
from tn_extensions import Conv

SMALL = {"small": Conv.make(2, 3, 3, (5, 5), 1, 1)}


@pytest.mark.parametrize("mode", ["estimate", "measure"])
def test_from_end_to_end(
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(plans, "PLANNED", SMALL)
    output = tmp_path / "plans.json"
    threads = torch.get_num_threads()
    try:
        arguments = ["--planning", mode, "--rounds", "5", "--output", str(output)]
        plans.main([*arguments, "--only", "kfac_reduce"])
        again = [*arguments, "--only", "kfac_reduce|sample_grad,", "--resume"]
        assert plans.main(again) == output
    finally:
        torch.set_num_threads(threads)
    assert str(output) in capsys.readouterr().out
    records = storage.read_json(output)["records"]
    assert [one["quantity"] for one in records] == ["kfac_reduce", "per_sample_grad"]
    for record in records:
        times = [one["measured_seconds"] for one in record["candidates"]]
        assert record["ratio"] == pytest.approx(times[0] / min(times))
        assert record["chosen"] == record["candidates"][0]["name"]
        for one in record["candidates"]:
            rows = one["operations"]
            total = sum(row["times"] * row["cost"]["seconds"] for row in rows)
            assert total == pytest.approx(one["estimated_seconds"])
    report = output.with_suffix(".md").read_text("utf-8")
    assert "geometric mean" in report and "| small |" in report


def test_layers_are_those_of_the_bar() -> None:
    assert len(PLANNED) == 17 and len(QUANTITIES) == 6
    assert {conv.num_dims for conv in PLANNED.values()} == {1, 2, 3}
