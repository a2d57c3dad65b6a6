"""The benchmark of curvlinops' operators, on few samples."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import curvlinops
import pytest
import torch
from torch import nn

from experiments import (
    curvlinops_report,
    curvlinops_suite,
    models,
    operator_costs,
    storage,
)
from experiments.curvlinops_suite import WORKLOADS, parts_of, rows_of
from experiments.figures import bar_chart
from experiments.models import Subject, UNet
from experiments.operator_costs import Settings
from experiments.operator_layers import LayerRow, layers
from experiments.operators import (
    KINDS,
    STOCK,
    Case,
    deviation,
    kept_bytes,
    supported,
    trace_deviation,
    vector_like,
)
from experiments.records import complete, measure_all

TINY = Subject("unet", 8)
QUICK = Settings(rounds=5, slow_rounds=1, with_memory=False)
linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc"
)


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "UNet", partial(UNet, width=4))


def _library(monkeypatch: pytest.MonkeyPatch, **classes: type) -> str:
    """Make a module that has some operators and no others."""
    library = ModuleType("library_of_a_test")
    vars(library).update(classes)
    monkeypatch.setitem(sys.modules, library.__name__, library)
    return library.__name__


def _measured(row: Any, settings: Settings = QUICK) -> dict[str, Any]:
    return complete({"title": row.title}, parts_of(row, settings))


def _content(*records: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"device_name": "a machine"}, "records": list(records)}


def test_stock_is_given_only_what_it_supports() -> None:
    model = TINY.plain()
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(nn.ConvTranspose2d) == 2 and nn.BatchNorm2d in kinds
    case = Case(TINY, 2, "expand")
    both, every = (case.parameters(model, side) for side in ("ours", "all"))
    transposed = supported(
        model, type("", (), {"_SUPPORTED_MODULES": nn.ConvTranspose2d})
    )
    assert len(both) == 12 and len(transposed) == 4
    assert {id(p) for p in every} == {id(p) for p in both + transposed}


def test_all_cases_of_the_bars_are_measured() -> None:
    rows = rows_of(WORKLOADS, ["empirical"])
    measured = {
        (row.kind, row.subject.pixels)
        for row in rows
        if isinstance(row, Case)
        and row.subject.network == curvlinops_report.BAR_NETWORK
    }
    assert set(curvlinops_report.SPEED_BARS) <= measured
    assert set(curvlinops_report.MEMORY_BARS) <= {kind for kind, _ in measured}
    assert len({row.title for row in rows}) == len(rows)


def test_exact_gradients_are_those_of_one_network() -> None:
    rows = rows_of(WORKLOADS, ["mc", "type-2"])
    exact = [
        row for row in rows if isinstance(row, Case) and row.fisher_type == "type-2"
    ]
    assert {row.subject.network for row in exact} == {"allcnnc"}
    assert all(isinstance(row, LayerRow) or row.kind != "ekfac" for row in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_is_checked_and_timed(kind: str) -> None:
    record = _measured(Case(TINY, 2, kind))
    assert record["complete"] and record["agrees"] and "reason" not in record
    assert record["trace_error"] <= operator_costs.TOLERANCE
    assert record["rounds"] == (1 if kind == "ekfac" else 5)
    assert set(record["seconds"]) == {"ours", "stock", "plain", "all"}
    names = {"exact inverse, first", "exact inverse, again", "matvec"}
    if kind != "ekfac":
        names |= {"inverse, first", "inverse, again"}
    assert set(record["products"]) == names
    for product in record["products"].values():
        least, most = product["ratio_range"]
        assert product["agrees"] and 0 < least <= product["ratio"] <= most
    counts = record["num_parameters"]
    assert counts["both"] < counts["ours"] < counts["network"]
    assert "memory_share" not in record


def test_other_fisher_types_are_only_built() -> None:
    record = _measured(Case(TINY, 2, "reduce", "mc", STOCK))
    assert record["error"] == 0 and record["complete"]
    assert "ratio" in record and "products" not in record


def test_layers_of_the_same_sizes_are_measured_once() -> None:
    found = layers(Case(Subject("allcnnc"), 1, "expand"))
    assert [layer.num for layer in found] == [1] * 9
    record = _measured(LayerRow(Case(TINY, 2, "expand")))
    assert record["complete"]
    by_name = {layer["layer"]: layer for layer in record["layers"]}
    assert by_name["up.0"]["factor_seconds"]["stock"] is None
    assert by_name["up.0"]["factor_seconds"]["ours"] is not None
    for name in ("encoder.0.0", "head.2"):
        assert by_name[name]["agrees"] and by_name[name]["error"] < 1e-5
    table = curvlinops_report.render(_content(record))
    assert "| up.1 | ConvTranspose2d(" in table and "| sum of what both have |" in table


def test_different_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(curvlinops.KFACLinearOperator):
        def compute_kronecker_factors(self) -> None:
            super().compute_kronecker_factors()
            for factor in self._input_covariances.values():
                factor *= 1.001

    library = _library(monkeypatch, KFACLinearOperator=Wrong)
    record = _measured(Case(TINY, 2, "expand", library=library))
    assert record["error"] == pytest.approx(1e-3, rel=0.1)
    assert not record["agrees"] and "ratio" not in record
    of_layers = _measured(LayerRow(Case(TINY, 2, "expand", library=library)))
    assert not of_layers["layers"][0]["agrees"]
    report = curvlinops_report.render(_content(record, of_layers))
    assert report.count("DIFFERS from stock's") == 1 + len(of_layers["layers"])


def test_what_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(curvlinops.KFACLinearOperator):
        def compute_kronecker_factors(self) -> None:
            raise ArithmeticError("too hard")

    library = _library(monkeypatch, KFACLinearOperator=Fails)
    rows = rows_of([(TINY, 2)], ["empirical"], library)
    assert {row.title.split(", ")[0] for row in rows} == {
        *("expand", "reduce", "layers of expand", "layers of reduce")
    }
    record = _measured(rows[0])
    assert record["reason"] == "ArithmeticError: too hard" and "complete" not in record
    assert "ArithmeticError: too hard" in curvlinops_report.render(_content(record))


def test_traces_and_what_is_kept() -> None:
    case = Case(TINY, 2, "ekfac", library=STOCK)
    model, batch = TINY.plain(), TINY.batch(2)
    operator = case.build("stock", model, batch)
    assert trace_deviation(operator, operator) == 0
    vector = vector_like(case.parameters(model, "stock"))
    assert deviation(operator @ vector, operator @ vector) == 0
    layers_of_stock = [
        m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))
    ]
    sizes = [(m.weight.shape[0], m.weight[0].numel()) for m in layers_of_stock]
    # two bases; eigenvalues of weight and bias
    entries = sum(out**2 + size**2 + out * size + out for out, size in sizes)
    # its trace is kept, too
    assert kept_bytes(operator) == 4 * (entries + 1)


@linux_only
def test_memory_of_the_same_operator_is_the_same() -> None:
    case = Case(Subject("allcnnc"), 2, "expand", library=STOCK)
    weighed = operator_costs._weigh(case, {"ours": 2**40, "stock": 0})
    assert weighed["memory_share"] == pytest.approx(1.0, abs=0.1)
    assert weighed["passing_share"] == 0
    peaks = weighed["peak_bytes"]
    # the largest factors of inputs alone
    assert peaks["stock"] - peaks["plain"] > 4 * 1728**2


def _record(kind: str, **values: Any) -> dict[str, Any]:
    row = {"title": f"{kind}, resnet18", "part": "operator", "kind": kind}
    place = {"network": "resnet18", "pixels": 224, "fisher_type": "empirical"}
    return row | place | values


def test_bars_are_judged() -> None:
    matvec = {"matvec": {"agrees": True, "ratio": 0.9, "error": 1e-6}}
    records = [
        _record("expand", ratio=1.9, memory_share=0.6, products=matvec),
        _record("expand", ratio=1.6, pixels=64),
        _record("reduce", ratio=1.2),
        _record("ekfac"),
        _record("expand", ratio=0.5, network="unet"),
        _record("expand", ratio=0.5, fisher_type="mc"),
    ]
    for record in records:
        if "ratio" in record:
            record["seconds"] = {"ours": 1.0, "stock": 1.0, "plain": 0.5}
        if "memory_share" in record:
            record |= {"memory_bytes": {"ours": 3, "stock": 5}, "passing_share": 0.1}
            record |= {"kept_bytes": {"ours": 1, "stock": 1}}
            record |= {"peak_bytes": {"plain": 2}}
    lines = curvlinops_report.render(_content(*records)).splitlines()
    for line in (
        "| build expand, resnet18 | >= 1.8 | 1.9 | yes |",
        "| build expand, resnet18 | >= 1.5 | 1.6 | yes |",
        "| build reduce, resnet18 | >= 1.3 | 1.2 | **no** |",
        "| build ekfac, resnet18 | >= 2 |  | not measured |",
        "| memory of expand, resnet18 | <= 0.5 | 0.6 | **no** |",
        "| memory of ekfac, resnet18 | <= 0.2 |  | not measured |",
        "| matvec, expand, resnet18 | >= 1 | 0.9 | **no** |",
    ):
        assert line in lines
    assert sum(line.startswith("| build ") for line in lines) == 4


def test_charts_are_xml_with_a_bar_a_value() -> None:
    svg = bar_chart("a < b", ["x", "y"], {"ours": [1.0, 2.0], "stock": [None, 4.0]}, 3)
    root = ElementTree.fromstring(svg)
    rectangles = root.findall("{*}rect")
    # a background, two of the legend and three bars
    assert len(rectangles) == 1 + 2 + 3
    widths = [float(rectangle.attrib["width"]) for rectangle in rectangles[-2:]]
    assert widths[1] == pytest.approx(2 * widths[0])
    assert root.find("{*}line") is not None
    assert "a < b" in [text.text for text in root.findall("{*}text")]


def _run(line: str) -> Path:
    threads = torch.get_num_threads()
    try:
        return curvlinops_suite.main(line.split())
    finally:
        torch.set_num_threads(threads)


def test_from_end_to_end_and_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(curvlinops_suite, "QUICK_WORKLOADS", ((TINY, 2),))
    output = tmp_path / "suite.json"
    options = f"--quick --no-memory --slow-rounds 1 --output {output}"
    assert _run(f"{options} --only reduce.*empirical") == output
    printed = capsys.readouterr().out.split()
    assert printed == [
        str(output),
        f"{tmp_path}/suite.md",
        f"{tmp_path}/suite-building.svg",
    ]
    (former,) = storage.read_json(output)["records"]
    assert former["kind"] == "reduce" and former["complete"]

    _run(f"{options} --only (reduce|expand).*empirical --resume")
    records = storage.read_json(output)["records"]
    assert [record["kind"] for record in records] == ["reduce", "expand"]
    # not measured again
    assert records[0] == former
    report = output.with_suffix(".md").read_text("utf-8")
    assert "![suite-building.svg](suite-building.svg)" in report
    with pytest.raises(SystemExit):
        _run(f"{options} --only reduce --resume --slow-rounds 2")
    assert "measured with slow_rounds = 1, now it is 2" in capsys.readouterr().err


def test_an_interruption_loses_nothing(tmp_path: Path) -> None:
    def parts(row: Case) -> Iterator[dict[str, Any]]:
        yield {"first": 1}
        if row.kind == "reduce":
            raise KeyboardInterrupt
        raise ArithmeticError("too hard")

    path = tmp_path / "suite.json"
    rows = [Case(TINY, 2, kind) for kind in KINDS]
    with pytest.raises(KeyboardInterrupt):
        measure_all(rows, parts, path, {}, known=[{"title": "former"}])
    former, failed, interrupted = storage.read_json(path)["records"]
    assert former == {"title": "former"}
    reason = "ArithmeticError: too hard"
    assert failed == {"title": rows[0].title, "first": 1, "reason": reason}
    assert interrupted == {"title": rows[1].title, "first": 1}


def test_rows_are_listed_or_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        _run("--list --only ekfac.*224")
    assert "ekfac, resnet18, 224 pixels, batch 8" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        _run("--only nonsense")
    assert "no row has a title with 'nonsense'" in capsys.readouterr().err
