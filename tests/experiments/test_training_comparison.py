"""The comparison of optimizers, on little data, and its report."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from experiments import storage, training_comparison, training_report
from experiments.figures import Panel, line_chart
from experiments.images import Images, digits
from experiments.training import KINDS, Recipe, Setting, small_cnn
from experiments.training_comparison import (
    best,
    compare,
    find_images,
    grid,
    run_side_by_side,
)
from experiments.training_report import outcomes, rows, verdicts
from tests.experiments.test_images import write_fashion


def few_digits() -> Images:
    data = digits()
    return Images(data.name, data.train.first(160), data.test.first(20))


@pytest.fixture
def setting() -> Setting:
    return Setting(few_digits(), 6, 32, partial(small_cnn, 32, 4), 2, 32)


def _run(kind: str, seed: int, *points: tuple[int, float, float, float]) -> Any:
    names = ("step", "seconds", "loss", "accuracy")
    found = [dict(zip(names, point, strict=True)) for point in points]
    described = {"kind": kind, "lr": 0.1, "options": {}, "text": "lr 0.1"}
    return {**described, "seed": seed, "points": found}


@pytest.fixture
def content() -> dict[str, Any]:
    """SGD takes eight steps; KFAC four and six of them, in half of the time."""
    sgd = [(0, 0.0, 2.0, 0.1), (4, 2.0, 1.5, 0.3), (8, 4.0, 1.0, 0.8)]
    first = [(0, 0.0, 2.0, 0.1), (4, 2.0, 1.0, 0.6), (8, 4.0, 0.5, 0.9)]
    second = [(0, 0.0, 2.0, 0.1), (6, 2.0, 0.9, 0.7), (8, 3.0, 0.7, 0.8)]
    never = [(0, 0.0, 2.0, 0.1), (8, 4.0, 1.1, 0.9)]
    return {
        "metadata": {"data": "digits", "device_name": "a machine"},
        "search": [
            {"kind": "SGD", "text": "lr 0.1", "lasts": [_last(1.0), _last(1.5)]}
        ],
        "runs": [
            *(_run("SGD", seed, *sgd) for seed in (1, 2)),
            *(_run("AdamW", seed, *never) for seed in (1, 2)),
            _run("KFAC-expand", 1, *first),
            _run("KFAC-expand", 2, *second),
        ],
    }


def _last(loss: float) -> dict[str, float]:
    return {"step": 8, "seconds": 1.0, "loss": loss, "accuracy": 0.5}


def test_all_kinds_get_as_many_trials() -> None:
    numbers = {kind: len(grid(kind)) for kind in KINDS}
    assert len(set(numbers.values())) == 1 and 5 <= numbers["SGD"] <= 8
    for kind in KINDS:
        texts = [recipe.text for recipe in grid(kind)]
        assert len(set(texts)) == len(texts)
        assert all(recipe.kind == kind for recipe in grid(kind))
    for recipe in grid("EKFAC"):
        assert recipe.options["inverse_update_steps"] == 10


def test_the_best_trial_is_that_of_the_least_loss() -> None:
    trials = [
        {"kind": kind, "lr": lr, "options": {}, "lasts": [*map(_last, losses)]}
        for kind, lr, losses in (
            ("SGD", 0.1, (0.1, math.inf)),
            ("SGD", 0.2, (0.5, 0.6)),
            ("SGD", 0.3, (0.4, 0.8)),
            ("AdamW", 0.4, (0.9, 0.9)),
        )
    ]
    expected = {"SGD": Recipe("SGD", 0.2), "AdamW": Recipe("AdamW", 0.4)}
    assert best(trials) == expected


def test_runs_take_turns_and_one_may_end_early(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class Noted(training_comparison.Training):
        def _step(self, *batch: Any) -> bool:
            order.append(self.recipe.text)
            return super()._step(*batch)

    monkeypatch.setattr(training_comparison, "Training", Noted)
    recipes = [Recipe("SGD", 1e20), Recipe("SGD", 0.01)]
    diverged, run = run_side_by_side(setting, recipes, seed=3)
    assert order[:4] == ["lr 1e+20", "lr 1e+20", "lr 0.01", "lr 0.01"]
    assert diverged["points"][-1]["loss"] == math.inf
    assert [point["step"] for point in run["points"]] == [0, 2, 4, 6]
    assert run["seed"] == 3
    start = [own["points"][0]["loss"] for own in (diverged, run)]
    assert start[0] == start[1]


def test_trials_and_runs_of_all(setting: Setting) -> None:
    grids = {kind: grid(kind)[1:3] for kind in ("SGD", "EKFAC")}
    content = compare(setting, grids, seeds=[4, 5])
    assert [trial["kind"] for trial in content["search"]] == ["SGD"] * 2 + ["EKFAC"] * 2
    ends = [[last["step"] for last in trial["lasts"]] for trial in content["search"]]
    assert ends == [[6] * 4] * 4
    runs = [(run["kind"], run["seed"]) for run in content["runs"]]
    assert runs == [("SGD", 4), ("EKFAC", 4), ("SGD", 5), ("EKFAC", 5)]
    assert content["metadata"]["training images"] == 160
    assert content["metadata"]["parameters"] == 4226


def test_steps_and_time_to_the_target(content: dict[str, Any]) -> None:
    found = outcomes(content)
    own = found["KFAC-expand"]
    assert own.step_ratios == [0.5, 0.75] and own.second_ratios == [0.5, 0.5]
    assert own.step_seconds == pytest.approx((4 / 8 + 3 / 8) / 2)
    assert found["SGD"].step_ratios == [1.0, 1.0]
    assert found["AdamW"].missed == [1, 2]
    assert found["AdamW"].over_seeds(found["AdamW"].step_ratios) is None
    judged = [(v.text.split(", ")[1], v.value, v.met) for v in verdicts(found)]
    assert judged == [
        ("part of SGD's steps", pytest.approx(0.625), False),
        ("test accuracy less SGD's", pytest.approx(0.05), True),
        ("part of SGD's time (an aim)", pytest.approx(0.5), True),
    ]
    head, *lines = rows(found)
    by_kind = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert by_kind["AdamW"]["x of SGD's steps"] == ""
    assert by_kind["KFAC-expand"]["final training loss"] == "0.6 +- 0.14"
    assert by_kind["KFAC-expand"]["test accuracy % then"] == "65"


def test_a_seed_that_misses_the_target_leaves_the_bar_open(
    content: dict[str, Any],
) -> None:
    content["runs"][-1]["points"] = content["runs"][2]["points"]
    steps, _, _ = verdicts(outcomes(content))
    assert steps.value is None and steps.met is None


def test_what_diverged_is_no_target(content: dict[str, Any]) -> None:
    for name in ("SGD", "KFAC-expand"):
        (run,) = (r for r in content["runs"] if (r["kind"], r["seed"]) == (name, 1))
        run["points"][-1]["loss"] = math.inf
    found = outcomes(content)
    assert found["KFAC-expand"].missed == [1] == found["SGD"].missed
    assert training_report.render(content, "x.svg")


def test_the_report_has_bars_table_and_figure(content: dict[str, Any]) -> None:
    report = training_report.render(content, "x.svg").splitlines()
    assert "![x.svg](x.svg)" in report
    assert "| KFAC-expand, part of SGD's steps | <= 0.5 | 0.625 | **no** |" in report
    assert "| SGD | lr 0.1 | 1.25 | 50 |" in report
    root = ElementTree.fromstring(training_report.chart(content))
    assert len(root.findall("{*}polyline")) == 2 * len(content["runs"])


def test_lines_rise_with_the_logarithm() -> None:
    curve = [(0.0, 1.0), (5.0, 10.0), (10.0, 100.0), (11.0, math.inf)]
    panels = [Panel("steps", {"a < b": [curve], "none": [[]]}), Panel("s", {})]
    root = ElementTree.fromstring(line_chart("title", "loss", panels, mark=10.0))
    drawn, empty = root.findall("{*}polyline")
    assert empty.attrib["points"] == ""
    xs, ys = zip(
        *(map(float, pair.split(",")) for pair in drawn.attrib["points"].split()),
        strict=True,
    )
    # the infinite one is not drawn
    assert len(xs) == 3
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2) and ys[0] > ys[1]
    marks = [
        line for line in root.findall("{*}line") if "stroke-dasharray" in line.attrib
    ]
    assert {float(line.attrib["y1"]) for line in marks} == {ys[1]}
    texts = [text.text for text in root.findall("{*}text")]
    assert {"title", "loss", "steps", "a < b", "10", "100"} <= set(texts)
    places = [(t.attrib["x"], t.attrib["y"]) for t in root.findall("{*}text")]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("end", [1e-12, 0.37, 1.0, 7.0, 240.0, 12345.0])
def test_ticks_are_few_and_apart(end: float) -> None:
    flat = Panel("x", {"a": [[(0.0, 1.0), (end, 1.0)]]})
    root = ElementTree.fromstring(line_chart("title", "y", [flat]))
    labels = [
        text
        for text in root.findall("{*}text")
        if text.attrib["text-anchor"] == "middle" and "transform" not in text.attrib
    ]
    places = sorted(
        float(text.attrib["x"]) for text in labels if (text.text or "") != "x"
    )
    assert 3 <= len(places) <= 8
    gaps = [b - a for a, b in zip(places, places[1:], strict=False)]
    assert min(gaps) > 40


def test_fashion_mnist_is_preferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_comparison, "DEBIAN_FASHION", tmp_path / "none")
    assert find_images(None).name == "digits"
    with pytest.raises(FileNotFoundError, match="no Fashion-MNIST"):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="no Fashion-MNIST"):
        find_images(None, "fashion-mnist")
    write_fashion(tmp_path, ".gz")
    assert find_images(tmp_path).name == "fashion-mnist"
    assert find_images(tmp_path, "digits").name == "digits"
    monkeypatch.setattr(training_comparison, "DEBIAN_FASHION", tmp_path)
    monkeypatch.setattr(training_comparison, "NUM_TRAIN", 5)
    assert len(find_images(None).train.labels) == 5


def test_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_comparison, "digits", few_digits)
    monkeypatch.setattr(training_comparison, "QUICK_STEPS", 3)
    monkeypatch.setattr(training_comparison, "QUICK_EVALUATIONS", 2)
    monkeypatch.setattr(training_comparison, "NUM_EVALUATED", 32)
    monkeypatch.setattr(training_comparison, "BATCH_SIZE", 16)
    output = tmp_path / "training.json"
    threads = torch.get_num_threads()
    options = f"--quick --images digits --threads {threads} --output {output}"
    assert training_comparison.main(options.split()) == output
    printed = capsys.readouterr().out.splitlines()
    assert printed[-3:] == [
        str(tmp_path / f"training.{ending}") for ending in ("json", "md", "svg")
    ]
    assert sum(line.startswith("| ") for line in printed) == 2 + len(KINDS)
    found = storage.read_json(output)
    assert len(found["search"]) == 2 * len(KINDS) and len(found["runs"]) == len(KINDS)
    report = output.with_suffix(".md").read_text("utf-8")
    output.with_suffix(".md").unlink()
    training_report.main([str(output)])
    assert output.with_suffix(".md").read_text("utf-8") == report
    # wherever this runs
    monkeypatch.setattr(training_comparison, "DEBIAN_FASHION", tmp_path / "none")
    with pytest.raises(SystemExit):
        training_comparison.main(["--data", str(tmp_path / "none")])
    assert "no Fashion-MNIST in" in capsys.readouterr().err
