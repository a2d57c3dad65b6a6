"""Reports and bars say what the JSON holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import report, storage
from experiments.bars import judge


def _outcome(seconds: float, ours: float, **fields: object) -> dict[str, object]:
    return {
        "seconds": seconds,
        "ratio": seconds / ours,
        "rounds": [seconds] * 5,
        "memory_bytes": 2**20,
        "error": 1e-7,
        "error_framed": 1e-7,
        "reason": None,
    } | fields


def _record(
    name: str, family: str, ours: float, unfold: float, **layer: object
) -> dict[str, Any]:
    return {
        "quantity": "expand",
        "batch_size": 8,
        "layer": {
            "name": name,
            "network": "resnet18",
            "family": family,
            "count": 1,
            "in_channels": 64,
            "out_channels": 64,
            "input_size": [28, 28],
            "kernel_size": [3, 3],
            "stride": [1, 1],
            "groups": 1,
        }
        | layer,
        "plan": "one | step",
        "contenders": {
            "ours": _outcome(ours, ours),
            "unfold": _outcome(unfold, ours, memory_bytes=4 * 2**20),
            "curvlinops": {
                "seconds": None,
                "ratio": None,
                "rounds": [],
                "memory_bytes": None,
                "error": None,
                "error_framed": None,
                "reason": "cannot",
            },
        },
    }


@pytest.fixture
def content() -> dict[str, Any]:
    return {
        "metadata": {
            "device": "cpu",
            "device_name": "abacus",
            "threads": 2,
            "dtype": "float32",
            "all_layers": True,
        },
        "records": [
            _record("fast", "3x3 stride 1", ours=1.0, unfold=4.0, count=3),
            _record("faster", "3x3 stride 1", ours=1.0, unfold=9.0),
            _record("slow", "1x1", ours=2.0, unfold=1.0),
        ],
    }


def test_bars_are_judged(content: dict[str, Any]) -> None:
    verdicts = [str(verdict) for verdict in judge(content["records"], 8)]

    def verdict(*words: str) -> str:
        (found,) = (v for v in verdicts if all(word in v for word in words))
        return found

    assert verdict("stride 1", "geometric").endswith("bar >= 6: 6, met")
    assert verdict("slowest", "expand").endswith("bar >= 1: 0.5 (slow), **not met**")
    # three times 4, 9 and 1 seconds against three times 1, 1 and 2
    assert verdict("sum over all").endswith("bar >= 3.5: 3.67, met")
    assert verdict("depthwise, geometric").endswith("bar >= 11: not measured")
    assert "bar <= 0.333: 0.188" in verdict("memory of `kfac_expand`", "28 or more")
    assert "not measured" in verdict("patch means")


def test_bars_depend_on_the_batch_size(content: dict[str, Any]) -> None:
    for record in content["records"]:
        record["batch_size"] = 32
    (verdict,) = (v for v in judge(content["records"], 32) if "sum over" in v.text)
    assert (verdict.limit, verdict.met) == (4.5, False)


@pytest.mark.parametrize(("error", "met"), [(4e-7, True), (5e-7, False)])
def test_errors_may_exceed_stocks_by_rounding_only(
    content: dict[str, Any], error: float, met: bool
) -> None:
    content["records"][1]["contenders"]["ours"]["error_framed"] = error
    (verdict,) = (
        v
        for v in judge(content["records"], 8)
        if "error of expand" in v.text and "border" in v.text
    )
    assert (verdict.worst, verdict.met) == ("faster", met)


def test_memory_above_stock_is_found(content: dict[str, Any]) -> None:
    ours = content["records"][0]["contenders"]["ours"]
    for excess, met in ((0.2, True), (0.5, False)):
        ours["memory_bytes"] = int((4 + excess) * 2**20)
        (verdict,) = (
            v
            for v in judge(content["records"], 8)
            if "kfac_expand" in v.text and "all layers" in v.text
        )
        assert verdict.met is met


def test_report_renders_tables(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content))
    output = report.write([path])
    assert output == tmp_path / "result.md"
    lines = output.read_text().splitlines()
    assert "# KFAC's input factors on abacus" in lines
    (fast,) = (line for line in lines if line.startswith("| fast | 3 |"))
    assert fast.split(" | ")[2:4] == ["1000", "4"]
    assert fast.endswith("| one \\| step |")
    assert "| 3x3 stride 1 | 2 | 6 |  |" in lines
    assert "| sum over resnet18 | 5 | 3.67 |  |" in lines
    assert "- curvlinops: cannot (fast, faster, slow)" in lines
    tables = [line for line in lines if line.startswith("|")]
    assert len({line.count(" | ") for line in tables if " fast " in line}) == 2


def test_report_says_when_the_bars_do_not_apply(content: dict[str, Any]) -> None:
    assert "orientation only" not in report.render(content)
    content["metadata"]["threads"] = 16
    assert "orientation only" in report.render(content)
    assert "partial" not in report.render(content)
    content["metadata"]["all_layers"] = False
    assert "partial" in report.render(content)


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    storage.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        storage.write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        storage.write_text(path, "\ud800")
    assert storage.read_json(path) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]
