"""A case that fails loses no other; reports say what was measured and what not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from experiments import __main__ as command
from experiments.harness import machine, report
from experiments.harness.case import Case, Options, Row
from experiments.harness.question import Claim, Question
from experiments.harness.run import run
from experiments.harness.store import Store, load


def cases(options: Options) -> Iterator[Case]:
    def measure(options: Options) -> Iterator[Row]:
        yield {"contender": "ours", "seconds": 0.5}

    def fail(options: Options) -> Iterator[Row]:
        yield {"contender": "ours", "seconds": 0.1}
        raise RuntimeError("no memory\nleft")

    yield Case({"layer": "first"}, measure)
    yield Case({"layer": "fails"}, fail)
    yield Case({"layer": "last"}, measure)


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {"All": rows[["layer", "seconds"]]}


def figures(rows: pd.DataFrame) -> dict[str, plt.Figure]:
    figure, _ = plt.subplots()
    plt.close(figure)
    return {"empty": figure}


QUESTION = Question(
    "How long?\n\nA time,\nin seconds.\n",
    cases,
    tables,
    figures,
    claims=(
        Claim("fast", lambda rows: rows["seconds"].max(), "at most", 1.0),
        Claim("slow", lambda rows: rows["seconds"].max(), "at least", 1.0),
        Claim("light", lambda rows: rows["bytes"].max(), "at most", 1.0),
    ),
)


def store_of(path: Path) -> Store:
    return Store(path, machine.describe(torch.device("cpu")))


def test_failures_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    run(QUESTION, Options(), store_of(path))
    rows = load(path)
    assert list(rows["layer"]) == ["first", "fails", "fails", "last"]
    assert rows["reason"].dropna().tolist() == ["RuntimeError: no memory"]


def test_resume_and_select(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    run(QUESTION, Options(), store_of(path), wanted=lambda c: c.title == "last")
    assert list(load(path)["layer"]) == ["last"]
    run(QUESTION, Options(), store_of(path), resume=True)
    assert list(load(path)["layer"]) == ["last", "first", "fails", "fails"]
    size = path.stat().st_size
    run(QUESTION, Options(), store_of(path), resume=True)
    assert path.stat().st_size == size


def test_no_time_left(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    run(QUESTION, Options(), store_of(path), seconds=-1.0)
    assert not path.exists()


def test_a_missing_device_is_a_row(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    path = tmp_path / "rows.jsonl"
    run(QUESTION, Options(torch.device("cuda")), store_of(path))
    assert list(load(path)["reason"]) == ["no cuda device"]


def test_report(tmp_path: Path) -> None:
    path = tmp_path / "question-here.jsonl"
    run(QUESTION, Options(), store_of(path))
    text = report.write("question", QUESTION, path).read_text()
    verdicts = [line for line in text.splitlines() if line.startswith("| fast")]
    assert text.startswith("# How long?\n\n`python -m experiments question`\n\n")
    assert "\n\nA time, in seconds.\n\n" in text
    assert verdicts == ["| fast | at most 1 | 0.5 | yes |"]
    assert "| slow | at least 1 | 0.5 | **no** |" in text
    assert "| light | at most 1 |  | not measured |" in text
    assert "| ours | RuntimeError: no memory | 1 |" not in text  # has no contender
    assert "RuntimeError: no memory | 1 |" in text
    assert (tmp_path / "question-here-empty.svg").exists()
    page = report.overview([("question", QUESTION)], tmp_path)
    assert "python -m experiments question" in page
    assert "(results/question-here-empty.svg)" in page


def test_numbers_in_tables() -> None:
    frame = pd.DataFrame({"a": [1.23456, 4321.9, float("nan")], "b": ["x|y", None, 7]})
    assert report.markdown(frame).splitlines()[2:] == [
        "| 1.23 | x\\|y |",
        "| 4322 |  |",
        "|  | 7 |",
    ]


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find", lambda name: QUESTION)
    arguments = ["memory", "--only", "first", "--output", str(tmp_path), "--quick"]
    assert command.main(arguments) == 0
    (rows,) = tmp_path.glob("memory-*-quick.jsonl")
    assert list(load(rows)["layer"]) == ["first"]
    assert capsys.readouterr().out.strip() == str(rows.with_suffix(".md"))
    for wrong in (["no such question"], [*arguments, "--rounds", "4"]):
        with pytest.raises(SystemExit):
            command.main(wrong)
    assert "--rounds must be at least 5, got 4" in capsys.readouterr().err
