"""The benchmark of backward passes, on few samples."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from backpack import extensions as stock
from backpack.extensions.module_extension import ModuleExtension
from torch import Tensor, nn

from experiments import backpack_report, backpack_suite, storage
from experiments.backpack_suite import EXTENSIONS, Settings, measure
from experiments.backward_passes import (
    STOCK,
    ExtractionTimer,
    Pass,
    Row,
    affordable_batch_size,
    largest_difference,
    num_bytes,
    peak_of_backward,
)
from experiments.models import NUM_CLASSES, REPLACEABLE, Subject, subjects

TINY = Subject("3c3d")
linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc"
)


def _library(monkeypatch: pytest.MonkeyPatch, **extensions: type) -> str:
    """Make a module that has some extensions and no others."""
    library = ModuleType("library_of_a_test")
    vars(library).update(extensions)
    monkeypatch.setitem(sys.modules, library.__name__, library)
    return library.__name__


def _passed(extension: Any) -> Pass:
    one = Pass(TINY.build(), *TINY.batch(2), extension)
    one.forward()
    one.backward()
    return one


def test_networks_are_the_same_each_time_and_have_their_classes() -> None:
    for subject in subjects(NUM_CLASSES, [32]):
        images, labels = subject.batch(2)
        with torch.no_grad():
            first, second = (subject.build()(images) for _ in range(2))
        assert first.shape == (2, NUM_CLASSES[subject.network])
        assert torch.equal(first, second)
        assert labels.shape == (2,)
        assert torch.equal(images, subject.batch(2)[0])


@pytest.mark.parametrize("pixels", [32, 64, 80])
def test_replaced_modules_leave_the_function_as_it_is(pixels: int) -> None:
    subject = Subject("resnet18", pixels)
    without = REPLACEABLE["resnet18"]
    whole, replaced = subject.build(), subject.build(without)
    assert not any(isinstance(module, without) for module in replaced.modules())
    assert all(parameter.requires_grad for parameter in replaced.parameters())
    images, _ = subject.batch(2)
    with torch.no_grad():
        expected = whole(images)
        torch.testing.assert_close(replaced(images), expected, rtol=1e-3, atol=1e-3)
        # else the softmax saturates, and there is no curvature to measure
        assert expected.softmax(1).max() < 0.9


def test_only_what_stock_cannot_do_is_replaced() -> None:
    resnet = Subject("resnet18", 32)
    assert Row(resnet, "KFAC").replaced() == [nn.BatchNorm2d, nn.AdaptiveAvgPool2d]
    assert Row(resnet, "SqrtGGNMC").replaced() == [nn.AdaptiveAvgPool2d]
    assert Row(resnet, "DiagGGNMC").replaced() == []
    assert Row(resnet, "BatchGrad").replaced() == []
    assert Row(TINY, "KFAC").replaced() == []


def test_passes_draw_the_same_samples_and_forget() -> None:
    first, second = (_passed(stock.DiagGGNMC()) for _ in range(2))
    saved = first.saved()
    assert len(saved) == 12
    assert largest_difference(saved, second.saved()) == 0
    first.forward()
    assert first.saved() == {}
    plain = _passed(None)
    assert plain.extensions == () and plain.saved() == {}


def test_differences_are_relative_to_a_tensors_scale() -> None:
    ones = {"weight": [torch.ones(2), 1e-3 * torch.ones(3)]}
    near = {"weight": [torch.ones(2), torch.tensor([1e-3, 1e-3, 1.1e-3])]}
    assert largest_difference(near, ones) == pytest.approx(0.1, rel=1e-3)
    zeros = {"weight": [torch.zeros(2)]}
    assert largest_difference(zeros, zeros) == 0


@pytest.mark.parametrize(
    "ours",
    [
        {},
        {"bias": [torch.ones(2)]},
        {"weight": [torch.ones(2)] * 2},
        {"weight": [torch.ones(1)]},
        {"weight": [torch.tensor([1.0, math.nan])]},
        {"weight": [torch.ones(2)], "bias": [torch.ones(2)]},
    ],
)
def test_what_cannot_be_compared_differs(ours: dict[str, list[Tensor]]) -> None:
    assert largest_difference(ours, {"weight": [torch.ones(2)]}) == math.inf


def test_bytes_count_once_and_not_what_a_view_hides() -> None:
    x = torch.ones(10, 10)
    assert num_bytes({"a": [x], "b": [x]}) == 400
    assert num_bytes({"a": [x[0]], "b": [torch.ones(3)]}) == 40 + 12
    assert num_bytes({"a": [torch.ones(1).expand(100)]}) == 4


def test_methods_for_parameters_are_timed_once() -> None:
    extension = stock.DiagGGNMC()
    one = _passed(extension)
    expected = one.saved()
    timer = ExtractionTimer(extension)
    one.forward()
    start = time.perf_counter()
    one.backward()
    whole = time.perf_counter() - start
    assert 0 < timer.take() < whole
    assert timer.take() == 0
    assert largest_difference(one.saved(), expected) == 0


def test_a_method_that_uses_another_one_is_not_timed_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Module(ModuleExtension):
        def weight(self) -> None:
            self.bias()
            clock.append(clock[-1] + 2.0)

        def bias(self) -> None:
            clock.append(clock[-1] + 1.0)

    extension = stock.BatchGrad()
    both = Module(["weight", "bias"])
    extension.set_module_extension(nn.Identity, both)
    timer = ExtractionTimer(extension)
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[-1])
    both.weight()
    both.bias()
    assert timer.take() == 4.0


@pytest.mark.parametrize(("limit", "expected"), [(1e9, 16), (1700, 16), (1600, 8)])
def test_batches_are_halved_until_they_fit(limit: float, expected: int) -> None:
    found = affordable_batch_size(lambda size: 10 + 100 * size, 16, limit)
    assert found == (expected, 10 + 100 * expected)


def test_one_sample_is_measured_in_any_case() -> None:
    assert affordable_batch_size(lambda size: 100 * size, 16, 0) == (1, 100)


def test_different_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(stock.BatchL2Grad):
        def __call__(self, module: Any, g_inp: Any, g_out: Any) -> None:
            super().__call__(module, g_inp, [1.001 * g for g in g_out])

    library = _library(monkeypatch, BatchL2Grad=Wrong)
    record = measure(Row(TINY, "BatchL2Grad", library), Settings(2, 5, 1e9, False))
    assert record["error"] == pytest.approx(2e-3, rel=0.1)
    assert not record["agrees"] and "ratio" not in record
    report = backpack_report.render(_content(record))
    assert "DIFFERS from stock's" in report


def test_what_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(stock.BatchGrad):
        def __call__(self, *_: Any) -> None:
            raise ArithmeticError("too hard")

    library = _library(monkeypatch, BatchGrad=Fails)
    record = measure(Row(TINY, "BatchGrad", library), Settings(2, 5, 1e9, False))
    assert record["reason"] == "ArithmeticError: too hard"
    assert "ArithmeticError: too hard" in backpack_report.render(_content(record))


def _content(*records: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"device_name": "a machine"}, "records": list(records)}


def _record(extension: str, network: str, **values: Any) -> dict[str, Any]:
    row = {"title": f"{extension}, {network}", "extension": extension}
    return row | {"network": network, "agrees": True} | values


def test_bars_are_judged() -> None:
    records = [
        _record("KFAC", "allcnnc", ratio=2.5, extraction_ratio=1.5, memory_share=0.3),
        _record("KFAC", "resnet18", ratio=1.9, extraction_ratio=2.1, memory_share=0.4),
        _record("KFAC", "3c3d", ratio=1.0, extraction_ratio=1.0, memory_share=0.9),
        _record("Variance", "allcnnc", ratio=0.5, memory_share=1.1),
        _record("BatchGrad", "allcnnc"),
    ]
    lines = backpack_report.render(_content(*records)).splitlines()
    for line in (
        "| KFAC, allcnnc | >= 2 | 2.5 | yes | 1.5 | **no** |",
        "| KFAC, resnet18 | >= 2 | 1.9 | **no** | 2.1 | yes |",
        "| BatchGrad, allcnnc | >= 3 |  | not measured |  | not measured |",
        "| KFAC, allcnnc | <= 0.333 | 0.3 | yes |",
        "| KFAC, resnet18 | <= 0.333 | 0.4 | **no** |",
        "| KFAC, 3c3d | <= 1 | 0.9 | yes |",
        "| Variance, allcnnc | <= 1 | 1.1 | **no** |",
    ):
        assert line in lines
    # these have no bar on their speed
    assert not any(line.startswith("| KFAC, 3c3d | >=") for line in lines)
    assert not any(line.startswith("| Variance, allcnnc | >=") for line in lines)


def test_every_bar_is_measured() -> None:
    for extension in {**backpack_report.SPEED_BARS, **backpack_report.MEMORY_BARS}:
        assert set(EXTENSIONS[extension]) & set(backpack_report.BAR_NETWORKS)


def _run(line: str) -> Path:
    threads = torch.get_num_threads()
    try:
        return backpack_suite.main(line.split())
    finally:
        torch.set_num_threads(threads)


def test_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "suite.json"
    line = "--quick --models 3c3d --extensions BatchL2Grad KFAC --no-memory"
    assert _run(f"{line} --library {STOCK} --output {output}") == output
    assert str(output) in capsys.readouterr().out
    records = storage.read_json(output)["records"]
    assert [record["extension"] for record in records] == ["BatchL2Grad", "KFAC"]
    for record in records:
        assert "reason" not in record
        assert record["error"] == 0 and record["batch_size"] == 2
        least, most = record["ratio_range"]
        assert 0 < least <= most
        for side in ("ours", "stock"):
            assert 0 < record["extraction_seconds"][side] < record["seconds"][side]
    report = output.with_suffix(".md").read_text("utf-8")
    assert report.count("BatchL2Grad, 3c3d, 32 pixels") == 3


@linux_only
def test_memory_of_the_same_extension_is_the_same() -> None:
    row = Row(TINY, "BatchGrad", STOCK)
    record = measure(row, Settings(4, 5, memory_limit=60 * 2**20, with_memory=True))
    assert "reason" not in record
    assert record["batch_size"] == 4
    assert record["memory_bytes"]["ours"] == pytest.approx(
        record["memory_bytes"]["stock"], abs=2**20
    )
    steady = peak_of_backward(row, "stock", 4, steady=True)
    assert steady < record["peak_bytes"]["stock"] + 2**19
    assert record["peak_bytes"]["stock"] > record["peak_bytes"]["plain"]
    assert record["stock_bytes_estimate"] == pytest.approx(
        record["peak_bytes"]["stock"], rel=0.3
    )


def test_what_ours_lacks_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = _library(monkeypatch, BatchL2Grad=stock.BatchL2Grad)
    output = tmp_path / "suite.json"
    line = f"--quick --no-memory --models 3c3d --library {library} --output {output}"
    _run(line)
    (record,) = storage.read_json(output)["records"]
    assert record["extension"] == "BatchL2Grad"


def test_nothing_to_measure_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _run("--models resnet18 --extensions KFLR")
    assert "none of these extensions" in capsys.readouterr().err
