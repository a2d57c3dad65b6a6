"""docs/support.md is what its generator makes, and ours supports what it should."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backpack import support, support_page
from tests.backpack.support import EXTENSIONS, PAGE, Saved, classify, survey
from tests.backpack.support_cases import tables
from tests.backpack.support_page import LACKING, WRONG, YES, Outcome, Outcomes, Place
from tn_extensions import backpack as ours

TEXT = PAGE.read_text("utf-8")
CELLS = support_page.read(TEXT)


def of_page(table: str) -> dict[tuple[str, str], str]:
    """Cells of one table."""
    return {key[1:]: cell for key, cell in CELLS.items() if key[0] == table}


def labels(table: str) -> set[str]:
    """Return the names of a table's rows."""
    rows = tables()[table]
    return {support_page.label(row, list(kinds)) for row, kinds in rows.items()}


def test_page_begins_with_the_introduction() -> None:
    """Of whatever versions it was made with."""
    versions = re.search(r"of BackPACK (\S+) \(stock\), with\ntorch (\S+)\. ", TEXT)
    assert versions
    assert TEXT.startswith(support.introduction(*versions.groups()))


@pytest.mark.parametrize("table", tables())
def test_page_is_complete(table: str) -> None:
    names = set(ours.__all__)
    assert set(EXTENSIONS) == names
    assert set(of_page(table)) == {(row, n) for row in labels(table) for n in names}


@pytest.mark.parametrize(
    "table", ["Convolutions", "Transposed convolutions", "Pooling"]
)
def test_ours_supports_everything(table: str) -> None:
    for at, cell in of_page(table).items():
        assert cell.startswith("yes / "), at


@pytest.mark.parametrize("table", tables())
def test_ours_is_nowhere_wrong(table: str) -> None:
    for at, cell in of_page(table).items():
        assert WRONG.verdict not in cell.split(" / ")[0], at


@pytest.mark.parametrize(
    ("table", "row", "names"),
    [
        ("Convolutions", "plain", ["DiagHessian", "KFRA"]),
        ("Convolutions", "groups", ["BatchL2Grad", "SqrtGGNMC", "KFAC"]),
        ("Convolutions", "bfloat16 autocast", ["Variance"]),
        ("Convolutions", "subclass, same forward", ["BatchGrad", "KFLR"]),
        ("Convolutions", "`padding='same'`, uneven sides", ["BatchL2Grad", "KFAC"]),
        ("Convolutions", "`padding_mode='reflect'`", ["GGNGramExact", "KFLR"]),
        ("Transposed convolutions", "frozen weight", ["BatchDotGrad", "KFRA"]),
        ("Transposed convolutions", "`output_padding`", ["DiagGGNMC", "KFAC"]),
        ("Transposed convolutions", "`output_size` by position", ["KFLR"]),
        ("Pooling", "AvgPool, `divisor_override`", ["DiagGGNExact", "KFLR"]),
        ("Other layers", "BatchNorm, train mode", ["BatchGrad", "KFAC"]),
        ("Other layers", "branches, with the converter", ["SqrtGGNExact", "KFRA"]),
    ],
)
def test_page_is_what_is_generated(table: str, row: str, names: list[str]) -> None:
    outcomes = survey({table: {row: tables()[table][row]}}, names)
    found = support_page.cells(outcomes)
    assert len(found) == len(names)
    assert found == {at: CELLS[at] for at in found}


def raises() -> Saved:
    raise TypeError("unknown")


def warns(message: str, value: Saved) -> Callable[[], Saved]:
    def run() -> Saved:
        warnings.warn(message, UserWarning, stacklevel=1)
        return value

    return run


def eye(size: int, scale: float = 1.0) -> Tensor:
    return scale * torch.eye(size)


UNKNOWN = "Extension saving to x does not have an extension for Module y"
RIGHT: Saved = {"weight": [eye(2), eye(3)], "bias": eye(2)}


def saves(**changes: Any) -> Callable[[], Saved]:
    return lambda: {**RIGHT, **changes}


@pytest.mark.parametrize(
    ("extension", "wanted"),
    [
        (saves(), YES),
        (saves(bias=eye(2, 1 + 1e-9)), YES),
        (warns(UNKNOWN, RIGHT), YES),
        (saves(bias=eye(2, 1.001)), WRONG),
        (saves(bias=eye(2, float("nan"))), WRONG),
        (saves(bias=eye(2)[:1]), WRONG),
        (saves(weight=[eye(2), eye(3, 2)]), WRONG),
        (saves(weight=[eye(2)]), WRONG),
        (saves(more=eye(2)), WRONG),
        (warns("Something else", {}), WRONG),
        (warns(UNKNOWN, {}), Outcome("no (UserWarning)", UNKNOWN)),
        (raises, Outcome("no (TypeError)", "unknown")),
    ],
)
def test_classify(extension: Callable[[], Saved], wanted: Outcome) -> None:
    assert classify(extension, saves()) == wanted


def test_classify_what_is_not_defined() -> None:
    assert classify(saves(), lambda: None) == WRONG
    message = "may not be meaningful"
    wanted = Outcome("no (UserWarning)", message)
    assert classify(warns(message, RIGHT), lambda: None) == wanted


def test_tolerance() -> None:
    for tolerance, wanted in ((0.1, YES), (0.01, WRONG)):
        assert classify(saves(bias=eye(2, 1.05)), saves(), tolerance) == wanted


def some_outcomes() -> Outcomes:
    no = Outcome("no (TypeError)", "a | b\nc")
    result: Outcomes = {}
    for name in ("A", "B", "C"):
        for variant in ("1d", "2d", "3d"):
            result[Place("First", "`x='y'`", name, variant)] = YES, YES
            own = no if name == "C" and variant != "2d" else YES
            result[Place("First", "groups", name, variant)] = own, WRONG
        result[Place("First", "partly", name, "3d")] = YES, no
        result[Place("Second", "alone", name, "")] = YES, LACKING
    return result


def test_page() -> None:
    """Equal columns are merged, and what is written can be read."""
    outcomes = some_outcomes()
    page = support.render(outcomes)
    for line in (
        "|  | A<br>B | C |",
        "| `x='y'` | yes / yes | yes / yes |",
        "| groups | yes / **WRONG** | 1d, 3d: no (TypeError), 2d: yes / **WRONG** |",
        "| partly (3d) | yes / no (TypeError) | yes / no (TypeError) |",
        "|  | A<br>B<br>C |",
        "| alone | yes / - |",
        "| First: groups | C | no (TypeError) | a \\| b c |",
    ):
        assert f"\n{line}\n" in page
    assert support_page.read(page) == support_page.cells(outcomes)


def test_page_of_what_is_all_supported() -> None:
    outcomes: Outcomes = dict.fromkeys(some_outcomes(), (YES, WRONG))
    assert "support\n\nNothing.\n" in support.render(outcomes)


def test_command_prints_a_selection(capsys: pytest.CaptureFixture[str]) -> None:
    support.main(["--extensions", "BatchGrad", "KFAC", "--cases", "ceil", "LeakyReLU"])
    found = support_page.read(capsys.readouterr().out)
    assert set(found) == {
        (table, row, name)
        for table, row in (
            ("Pooling", "MaxPool, `ceil_mode`"),
            ("Pooling", "AvgPool, `ceil_mode`"),
            ("Other layers", "LeakyReLU"),
        )
        for name in ("BatchGrad", "KFAC")
    }
    assert found == {at: CELLS[at] for at in found}
