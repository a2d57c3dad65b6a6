"""The pass over a device runs to its end, whatever becomes of its parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import gpu
from experiments.harness.store import load
from experiments.questions import NAMES


def test_parts_ask_questions_that_exist() -> None:
    parts = gpu.parts("cuda", False, Path("results"))
    asked = [part.command[2] for part in parts if part.command[1] == "experiments"]
    assert set(asked) <= set(NAMES) and "next_line" in asked
    assert sum(part.minutes for part in parts) <= 12


def test_a_quick_pass_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # each question begins at least one case
    monkeypatch.setattr(gpu, "_QUESTIONS", {"tuning": 0.01, "memory": 0.01})
    monkeypatch.setattr(gpu, "_GRACE_MINUTES", 3.0)
    gpu.run("cpu", True, tmp_path, 8.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["tuning", "memory", "tests"]
    assert "done" in lines[0]
    (rows,) = tmp_path.glob("tuning-*-quick.jsonl")
    assert len(load(rows)) > 0


def test_a_part_that_fails_or_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [
        gpu.Part("fails", ["-c", "raise SystemExit(3)"], 1.0),
        gpu.Part("sleeps", ["-c", "import time; time.sleep(60)"], 0.01),
        gpu.Part("works", ["-c", ""], 1.0),
    ]
    monkeypatch.setattr(gpu, "parts", lambda *arguments: parts)
    assert gpu.run("cpu", True, tmp_path, 8.0) == 2
    titles = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]
    assert titles == ["fails: exit 3", "sleeps: out of time", "works: done"]
