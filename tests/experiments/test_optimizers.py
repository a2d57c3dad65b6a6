"""The benchmark of preconditioned training, on few samples."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiments import (
    optimizer_contenders,
    optimizer_costs,
    optimizers,
    optimizers_report,
    storage,
)
from experiments.models import Subject
from experiments.optimizer_asdl import AsdlRow, asdl_parts
from experiments.optimizer_contenders import Case, Training
from experiments.optimizer_costs import (
    Settings,
    deviation,
    overhead_parts,
    overheads,
    peak_of_training,
)
from experiments.optimizer_processes import ProcessesRow, processes_rows
from experiments.optimizer_scaling import (
    PaperRow,
    Rates,
    Sizes,
    costs,
    fractions,
    layers_of,
    paper_parts,
)
from experiments.optimizers import WORKLOADS, rows_of
from experiments.records import complete
from tn_extensions.kronecker.factors import is_low_rank

TINY = Subject("3c3d")
QUICK = Settings(rounds=5, slow_rounds=1, with_memory=False)
linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc"
)


def _tiny() -> nn.Module:
    """Strides, dilation, a bias or none, few data and many."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 8, (3, 2), dilation=2, padding=(0, 1)),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def _undilated() -> nn.Module:
    """Make layers that ASDL supports: strides and paddings, a bias or none."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 8, (3, 2), padding=(0, 1)),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("experiments.models._three_c_three_d", _tiny)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _measured(case: Case, settings: Settings = QUICK) -> dict[str, Any]:
    return complete({"title": case.title}, overhead_parts(case, settings))


def _asdl_record(is_late: bool = True) -> dict[str, Any]:
    row = AsdlRow(Case(TINY, 4, "expand", is_late))
    return complete({"title": row.title}, asdl_parts(row, QUICK))


def _content(*records: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"device_name": "a machine"}, "records": list(records)}


@pytest.mark.parametrize("is_late", [True, False])
@pytest.mark.parametrize("approx", ["expand", "reduce"])
def test_contenders_agree_and_are_timed(approx: str, is_late: bool) -> None:
    record = _measured(Case(TINY, 4, approx, is_late))
    assert record["agrees"] and record["error"] < 1e-5 and "reason" not in record
    assert record["gradient_error"] < 1e-3
    names = {"plain", "factors", "update", "every 1", "every 10"}
    assert set(record["overheads"]) == names
    held = record["averages_bytes"]
    assert (held["ours"] == held["stock"]) == is_late
    assert all(seconds > 0 for seconds in record["seconds"].values())
    report = optimizers_report.render(_content(record))
    assert f"| {record['title']} | factors | " in report


@pytest.mark.parametrize("side", ["ours", "stock"])
def test_steps_update_what_is_asked(side: optimizer_contenders.Side) -> None:
    training = Training.of(Case(TINY, 4, "reduce"), side)
    training.start(is_late=False)
    layer = training.layers["6"]
    assert is_low_rank(layer.averages["inputs"]) == (side == "ours")
    inverse = layer.inverse
    # averages change in place
    before = {name: own.clone() for name, own in training.averages().items()}
    training.step("plain")
    assert deviation(training.averages(), before) == 0 and layer.inverse is inverse
    training.step("factors")
    assert deviation(training.averages(), before) > 0 and layer.inverse is inverse
    training.step("inverses")
    assert layer.inverse is not inverse
    assert training.averages_bytes() > 0 and training.inverses_bytes() > 0


def test_the_usual_factors_are_computed_by_curvlinops_functions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []
    for name in ("extract_patches", "extract_averaged_patches"):
        stock = getattr(optimizer_contenders, name)

        def spy(
            *args: Any, name: str = name, stock: Any = stock, **options: Any
        ) -> Any:
            called.append(name)
            return stock(*args, **options)

        monkeypatch.setattr(optimizer_contenders, name, spy)
    for approx in ("expand", "reduce"):
        Training.of(Case(TINY, 2, approx), "ours").start(is_late=False)
        assert not called
    Training.of(Case(TINY, 2, "expand"), "stock").start(is_late=False)
    Training.of(Case(TINY, 2, "reduce"), "stock").start(is_late=False)
    assert called == ["extract_patches"] * 2 + ["extract_averaged_patches"] * 2


def test_what_curvlinops_lacks_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 2, groups=2), nn.Flatten())
    batch = torch.ones(1, 2, 2, 2), torch.zeros(1).long()
    with pytest.raises(NotImplementedError, match="usual factors are not those of"):
        Training(model, batch, "stock").step("inverses")


def test_different_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = optimizer_contenders.add_input_factor
    monkeypatch.setattr(
        optimizer_contenders,
        "add_input_factor",
        lambda *args: right(*args).mul_(1.001),
    )
    record = _measured(Case(TINY, 2, "expand"))
    assert record["error"] == pytest.approx(1e-3, rel=0.1)
    assert not record["agrees"] and "seconds" not in record
    assert "DIFFERS from the contender" in optimizers_report.render(_content(record))


@pytest.mark.parametrize("is_late", [True, False])
def test_factors_of_asdl_agree_and_are_timed(
    is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("asdl")
    monkeypatch.setattr("experiments.models._three_c_three_d", _undilated)
    record = _asdl_record(is_late)
    assert record["agrees"] and record["error"] < 1e-5 and "reason" not in record
    assert record["layers"] == 3 and set(record["seconds"]) == {"pass", "ours", "asdl"}
    report = optimizers_report.render(_content(record))
    assert f"| {record['title']} | " in report and "No inverses" in report


def test_factors_of_asdl_that_differ_are_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conv = pytest.importorskip("asdl.operations.conv").Conv2d
    stock = conv.cov_kron_B
    monkeypatch.setattr("experiments.models._three_c_three_d", _undilated)
    wrong = staticmethod(lambda module, gradients: 1.001 * stock(module, gradients))
    monkeypatch.setattr(conv, "cov_kron_B", wrong)
    record = _asdl_record()
    assert record["error"] == pytest.approx(1e-3, rel=0.1)
    assert not record["agrees"] and "seconds" not in record


def test_layers_that_asdl_lacks_are_a_reason() -> None:
    pytest.importorskip("asdl")
    assert "conv2d.dilation has to be (1, 1)" in _asdl_record()["reason"]


def test_asdl_is_optional(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "asdl", None)
    output = tmp_path / "found.json"
    options = ["--quick", "--threads", "1", "--rows", "ASDL.*long run"]
    optimizers.main([*options, "--output", str(output)])
    (record,) = storage.read_json(output)["records"]
    assert "skipped, as ASDL is missing" in record["reason"]
    assert f"{record['title']}: {record['reason']}" in capsys.readouterr().err
    assert record["reason"] in output.with_suffix(".md").read_text("utf-8")


def test_deviations_that_are_not_numbers_do_not_agree() -> None:
    wrong = {"": torch.tensor([float("nan")])}
    assert not deviation(wrong, {"": torch.ones(1)}) <= optimizer_costs.TOLERANCE
    assert not deviation({}, {"": torch.ones(1)}) <= optimizer_costs.TOLERANCE


def test_overheads_are_averaged_over_steps() -> None:
    seconds = {"sgd": 1.0, "ours plain": 2.0, "ours factors": 3.0, "ours invert": 10.0}
    seconds |= {f"stock {k}": 2 * seconds[f"ours {k}"] for k in ("plain", "factors")}
    found = overheads(seconds | {"stock invert": 20.0})
    assert found["plain"] == {"ours": 1, "stock": 3, "ratio": 3}
    assert found["factors"] == {"ours": 2, "stock": 5, "ratio": 2.5}
    assert found["update"] == {"ours": 1, "stock": 2, "ratio": 2}
    assert found["every 1"] == {"ours": 12, "stock": 25, "ratio": 25 / 12}
    assert found["every 10"]["ours"] == pytest.approx(1 + 11 / 10)


@linux_only
def test_memory_counts_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # a fresh process knows no other network
    case = Case(TINY, 1, "expand")
    training = Training.of(case, "ours")
    training.start(is_late=True)
    kept = training.averages_bytes() + training.inverses_bytes()
    # gradients and momentum, too
    parameters = sum(p.nbytes for p in training.model.parameters())
    assert peak_of_training(case, "ours") > kept + 2 * parameters


def test_bars_are_judged() -> None:
    record = {"part": "overhead", "approx": "expand", "is_late": True, "title": "a"}
    late = record | {"overheads": {"factors": {"ratio": 1.9}}, "memory_share": 0.9}
    early = late | {"is_late": False, "title": "b"}
    other = record | {"approx": "reduce", "title": "c"}
    found = {v.text: v.met for v in optimizers_report.verdicts([late, early, other])}
    assert found == {
        "overhead, factors: a": False,
        "overhead, factors: c": None,
        "memory: a": True,
        "memory: b": True,
        "memory: c": None,
    }


def test_scaling_on_paper_follows_its_formulas() -> None:
    layers = layers_of("resnet18")
    assert len(layers) == 21
    first, last = Sizes.of(layers[0]), Sizes.of(layers[-1])
    assert first == ((147, 64), 1, 64 * 147) and last == ((513, 1000), 1, 513_000)
    assert fractions(1) == [1.0] and fractions(2) == [0.0, 1.0]
    assert fractions(4) == [0.0, 0.5, 1.0]
    rates = Rates(1.0, 1.0, 2, 4)
    one = costs(layers, 1, 1.0, rates)
    assert one["factor_bytes"] == one["inverse_bytes"] == one["gradient_bytes"] == 0
    sizes = [Sizes.of(layer) for layer in layers]
    assert one["inversion_seconds"] == sum(own.inversion for own in sizes) / 1e9
    assert one["inversion_seconds_a_step"] == one["inversion_seconds"] / 4
    for size in (4, 64):
        none, half, every = (costs(layers, size, f, rates) for f in (0.0, 0.5, 1.0))
        triangles = sum(2 * d * (d + 1) for own in sizes for d in own.columns)
        assert none["factor_bytes"] == 2 * (size - 1) / size * triangles
        assert none["inverse_bytes"] == every["gradient_bytes"] == 0
        assert 0 < half["inverse_bytes"] < every["inverse_bytes"]
        assert 0 < half["gradient_bytes"] < none["gradient_bytes"]
        largest = max(own.inversion for own in sizes) / 1e9
        assert largest <= none["inversion_seconds"] < one["inversion_seconds"]
    record = complete({"title": "a"}, paper_parts(PaperRow("resnet18", rates)))
    assert "| 1024 | 0.5 | " in optimizers_report.render(_content(record))


def test_all_is_measured_in_the_long_run_and_at_first() -> None:
    rows = rows_of(WORKLOADS, None, [1, 2, 4], Rates())
    titles = [row.title for row in rows]
    assert len(set(titles)) == len(rows)
    cases = {row[2:] for row in rows if isinstance(row, Case)}
    assert len(cases) == 4
    found = [row for row in rows if isinstance(row, ProcessesRow)]
    assert found == processes_rows([1, 2, 4]) and len(found) == 6
    assert len(rows_of(WORKLOADS, "scaling", [1], Rates())) == 3


def test_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "found.json"
    rows = "(^expand.*long run|2 processes, fraction 1|resnet18)"
    line = f"--quick --threads 1 --no-memory --rows {rows} --output {output}"
    # arguments have spaces
    options = line.replace(rows, "@").split()
    options = [rows if each == "@" else each for each in options]
    assert optimizers.main(options) == output
    assert capsys.readouterr().out.split() == [str(output), f"{tmp_path}/found.md"]
    records = storage.read_json(output)["records"]
    assert [record["part"] for record in records] == ["overhead", "scaling", "paper"]
    assert all(record["complete"] for record in records)
    assert set(records[1]["seconds"]) == {"sgd", "plain", "factors", "inverses"}
    report = output.with_suffix(".md").read_text("utf-8")
    for head in ("## Bars", "## Several processes", "### scaling on paper, resnet18"):
        assert head in report


def test_rows_are_listed_or_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        optimizers.main(["--list", "--rows", "vgg19"])
    printed = capsys.readouterr().out
    assert "reduce, vgg19, 64 pixels, batch 8, in the long run" in printed
    with pytest.raises(SystemExit, match="2"):
        optimizers.main(["--rows", "nonsense"])
    assert "no row has a title with 'nonsense'" in capsys.readouterr().err
