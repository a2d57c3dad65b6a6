"""``python -m tn_extensions --report``: scripts compute the same, and hear of it."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import plugs_support
from tests.backpack import support_page
from tn_extensions import Conv, functional, patch, unpatch
from tn_extensions.functional.evaluate import observers
from tn_extensions.patch import TOOLKITS
from tn_extensions.report import FAULTS, report

ROOT = Path(__file__).parents[1]

BEGIN = """
import json, sys, torch
from torch import nn
torch.manual_seed(0)
mode, groups = sys.argv[1], int(sys.argv[2])
model = nn.Sequential(
    nn.Conv2d(2, 4, 3, padding=1, padding_mode=mode), nn.Tanh(),
    nn.Conv2d(4, 4, 2, groups=groups), nn.Flatten(), nn.Linear(36, 3)
).double()
x, y = torch.rand(3, 2, 4, 4).double(), torch.arange(3)
def show(values):
    print(json.dumps([value.flatten().tolist() for value in values]))
"""
SCRIPTS = {
    "backpack": BEGIN
    + """
from backpack import backpack, extend
from backpack.extensions import BatchGrad, BatchL2Grad
model, loss = extend(model), extend(nn.CrossEntropyLoss())
with backpack(BatchGrad(), BatchL2Grad()):
    loss(model(x), y).backward()
show(value for p in model.parameters() for value in (p.grad_batch, p.batch_l2))
sys.exit(3)
""",
    "curvlinops": BEGIN
    + """
from curvlinops import KFACLinearOperator
params = [p for p in model.parameters() if p.requires_grad]
arguments = nn.CrossEntropyLoss(), params, [(x, y)]
kfac = KFACLinearOperator(model, *arguments, fisher_type="type-2")
show([kfac @ torch.ones(kfac.shape[1]).double()])
""",
    "opacus": BEGIN
    + """
from opacus.grad_sample import GradSampleModule
loss = nn.CrossEntropyLoss()(GradSampleModule(model)(x), y)
loss.backward()
show(p.grad_sample for p in model.parameters())
raise KeyError("after all")
""",
}
QUANTITIES = {
    "backpack": "per_sample_grad + per_sample_grad_norm",
    "curvlinops": "kfac_expand",
    "opacus": "per_sample_grad",
}
ENDS = {"backpack": 3, "curvlinops": 0, "opacus": 1}


def write(toolkit: str, folder: Path) -> str:
    script = folder / f"{toolkit}_script.py"
    script.write_text(SCRIPTS[toolkit])
    return str(script)


def run_here(script: str, *arguments: str) -> None:
    before, sys.argv = sys.argv, [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except (SystemExit, KeyError):
        pass
    finally:
        sys.argv = before


def row_of(text: str, toolkit: str) -> str:
    (row,) = [
        line
        for line in text.splitlines()
        if line.split("  ")[0] == toolkit and f"  {QUANTITIES[toolkit]}  " in line
    ]
    return row


@pytest.mark.parametrize("toolkit", SCRIPTS)
def test_values_are_stocks_and_the_report_says_what_ran(
    toolkit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = write(toolkit, tmp_path)
    run_here(script, "zeros", "1")
    expected = json.loads(capsys.readouterr().out)
    result = subprocess.run(
        [sys.executable, "-m", "tn_extensions", "--report", "--only", toolkit]
        + [script, "zeros", "1"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == ENDS[toolkit], result.stderr
    found = json.loads(result.stdout)
    assert [len(value) for value in found] == [len(value) for value in expected]
    for own, value in zip(found, expected, strict=True):
        assert own == pytest.approx(value, rel=1e-9, abs=1e-12)
    row = row_of(result.stderr, toolkit)
    assert "padding_mode" not in row
    # the quantity's calls and layers
    assert row.removeprefix(toolkit).split()[-3:-1] in (["2", "2"], ["3", "3"])


@pytest.mark.parametrize("toolkit", SCRIPTS)
def test_what_stock_gets_wrong(toolkit: str, tmp_path: Path) -> None:
    script = write(toolkit, tmp_path)
    patch(only=[toolkit])
    try:
        with report() as found:
            run_here(script, "circular", "2")
    finally:
        unpatch()
    wrong = "padding_mode" if toolkit == "opacus" else "padding_mode, groups"
    assert f"  {wrong}  " in row_of(str(found), toolkit)


def test_our_own_functions_have_no_stock() -> None:
    conv, x = Conv.make(1, 1, 2, (3,)), torch.rand(2, 1, 3)
    with report() as found:
        functional.unfold_input(x, conv)
        functional.unfold_input(x.double(), conv)
        functional.unfold_input(x[:, :, :2], Conv.make(1, 1, 2, (2,)))
        functional.together("per_sample_grad", x=x, g=torch.rand(2, 1, 2), conv=conv)
    rows = [line.split()[:-1] for line in str(found).splitlines()[3:-1]]
    assert rows == [
        ["tn_extensions", "per_sample_grad", "1", "1"],
        ["tn_extensions", "unfold_input", "3", "2"],
    ]


def test_nothing_is_watched_before_and_after() -> None:
    conv = Conv.make(1, 1, 2, (3,))
    functional.unfold_input(torch.rand(2, 1, 3), conv)
    with report() as found:
        pass
    functional.unfold_input(torch.rand(2, 1, 3), conv)
    nn.Conv1d(1, 1, 1)(torch.rand(1, 1, 1))
    assert not observers
    assert "no toolkit" in str(found)


def faults(toolkit: str, layer: Any) -> set[str]:
    x = torch.rand(1, 2, *(4,) * (layer.weight.dim() - 2))
    return {fault.name for fault in FAULTS[toolkit] if fault.occurs(layer, x)}


@pytest.mark.parametrize("toolkit", FAULTS)
def test_layers_that_stock_gets_right(toolkit: str) -> None:
    assert toolkit in TOOLKITS
    for layer in (
        nn.Conv2d(2, 2, 3, stride=2, padding=1, dilation=2),
        nn.Conv3d(2, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3, padding_mode="circular"),
        nn.Conv1d(2, 2, 3, padding="valid", padding_mode="reflect"),
        nn.ConvTranspose2d(2, 2, 3, padding=1),
    ):
        assert not faults(toolkit, layer)


@pytest.mark.parametrize(
    ("layer", "toolkits"),
    [
        (nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"), {"backpack", "opacus"}),
        (
            nn.Conv2d(2, 2, 3, padding="same", padding_mode="circular"),
            {*FAULTS},
        ),
        (
            nn.Conv2d(2, 2, 3, groups=2),
            {"backpack", "curvlinops", "laplace", "kronfluence"},
        ),
        (nn.Conv1d(2, 2, 3, groups=2), {"backpack"}),
        (
            nn.Conv2d(2, 2, 2, padding="same"),
            {"backpack", "curvlinops", "laplace"},
        ),
        (nn.ConvTranspose2d(2, 2, 2, stride=2, output_padding=1), {"backpack"}),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_layers_that_stock_gets_wrong(layer: nn.Module, toolkits: set[str]) -> None:
    assert {name for name in FAULTS if faults(name, layer)} == toolkits


# of each column, what the report calls its quantity
COLUMNS = {
    ("backpack", "BatchGrad"): "per_sample_grad",
    ("backpack", "BatchL2Grad"): "per_sample_grad_norm",
    ("backpack", "Variance"): "ggn_diagonal + weight_vjp",
    ("backpack", "DiagGGNExact"): "ggn_diagonal",
    ("backpack", "KFAC"): "kfac_expand",
    ("opacus", "Opacus, gradients"): "per_sample_grad",
    ("opacus", "Opacus, norms"): "per_sample_grad_norm",
    ("captum", "captum, gradients"): "per_sample_grad",
    ("kronfluence", "kronfluence, gradients"): "per_sample_grad",
}
UNSEEN = "`output_size` by keyword"
"""Not a hyper-parameter: BackPACK's KFAC is wrong there, and the report silent."""


@pytest.mark.parametrize(("toolkit", "column"), COLUMNS)
def test_report_says_wrong_where_the_tables_do(toolkit: str, column: str) -> None:
    page = "support.md" if toolkit == "backpack" else "plugs_support.md"
    cells = support_page.read((ROOT / "docs" / page).read_text("utf-8"))
    for table, rows in plugs_support.tables().items():
        for row, variants in rows.items():
            cell = cells[table, support_page.label(row, [*variants]), column]
            stock = cell.split(" / ")[1]
            for variant, make_case in variants.items():
                is_wrong = re.match(rf"(.*{variant}[^:]*: )?\*\*WRONG", stock)
                case = make_case()
                with report() as found:
                    case.model(case.x)
                named = [*found.wrong_in_stock(toolkit, COLUMNS[toolkit, column])]
                if row != UNSEEN:
                    assert bool(named) == bool(is_wrong), (table, row, variant, named)


def test_layers_are_seen_however_they_are_called() -> None:
    with report() as found:
        nn.Conv2d(2, 2, 1)(input=torch.rand(1, 2, 4, 4))
        nn.ConvTranspose1d(2, 2, 1)(torch.rand(1, 2, 4), [4])
    assert "no toolkit" in str(found)
