"""DP-SGD with Opacus alone, and with our samplers."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import privacy, storage


def test_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "privacy.json"
    assert privacy.main(["--quick", "--output", str(output)]) == output
    content = storage.read_json(output)
    titles = [contender.title for contender in privacy.CONTENDERS]
    assert [record["title"] for record in content["records"]] == titles
    assert all(record["seconds"] > 0 for record in content["records"])
    spent = {row["title"]: row.get("epsilon") for row in content["trained"]}
    assert spent.pop("no privacy") is None
    # the budget depends on the noise only, not on who computes gradients
    assert len({round(epsilon, 9) for epsilon in spent.values()}) == 1
    printed = capsys.readouterr().out
    assert all(title in printed for title in titles)
