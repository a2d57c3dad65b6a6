"""BackPACK's tests run with our classes, and count where stock's classes pass.

A few tests in a folder take the place of BackPACK's own.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import stock_tests

TESTS = {
    # as theirs
    "__init__": "from pytorch_memlab import MemReporter",
    "test_place": """\
import pytest
import tn_extensions.backpack as ours
from backpack import extensions
from backpack.extensions import KFAC, firstorder, secondorder

SHARED = [name for name in ours.__all__ if hasattr(extensions, name)]


@pytest.mark.parametrize("name", SHARED)
def test_ours(name):
    for place in (extensions, firstorder, secondorder):
        assert getattr(place, name, getattr(ours, name)) is getattr(ours, name)
    assert KFAC is ours.KFAC


def test_others_are_stocks():
    assert extensions.HMP.__module__.startswith("backpack.")
    assert secondorder.hbp.KFAC.__module__.startswith("backpack.")
""",
    "test_differing": """\
import pytest
from backpack.extensions import KFAC

OURS = KFAC.__module__.startswith("tn_extensions")
with_address = pytest.mark.parametrize("value", [lambda: 1], ids=str)


@with_address
def test_with_ours(value):
    assert not OURS


@pytest.fixture
def broken():
    yield
    assert not OURS


def test_after_ours(broken):
    pass


@pytest.mark.parametrize("groups", [2])
def test_kfac_not_supported(groups):
    assert not OURS


@with_address
def test_with_both(value):
    assert False


def test_with_stock():
    assert OURS


@pytest.mark.montecarlo
def test_slow():
    assert False
""",
    "test_import": """\
from backpack.extensions import KFAC

if KFAC.__module__.startswith("tn_extensions"):
    import no_such_module


def test_imported():
    pass
""",
    "test_memory": """\
from test import MemReporter


def test_memory():
    MemReporter()
""",
}


class _Result(NamedTuple):
    status: int
    printed: str


def _run(sources: Path, *arguments: str) -> _Result:
    result = subprocess.run(
        [sys.executable, "-m", "tests.stock_tests"]
        + [f"--sources={sources}", "-rA", *arguments],
        cwd=stock_tests.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return _Result(result.returncode, result.stdout)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write sources with the tests above, and a BackPACK that must not be used."""
    folder = tmp_path_factory.mktemp("sources")
    for package in ("backpack", "test"):
        (folder / package).mkdir()
    (folder / "backpack/__init__.py").write_text("raise ImportError('not installed')")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    for name, content in TESTS.items():
        (folder / "test" / f"{name}.py").write_text(content)
    return folder


@pytest.fixture(scope="module")
def result(sources: Path) -> _Result:
    return _run(sources)


def test_our_classes_are_in_place(result: _Result) -> None:
    ours, _ = result.printed.split("Once more with stock's classes")
    assert "classes: ours, " in ours
    for name in ("KFAC", "KFLR", "KFRA"):
        assert f"PASSED test/test_place.py::test_ours[{name}]" in ours
    assert "FAILED test/test_place.py" not in ours
    assert "PASSED test/test_place.py::test_others_are_stocks" in ours


def test_what_fails_only_with_ours_is_reported(result: _Result) -> None:
    assert result.status == 1
    head, *only_ours = result.printed.split("\nFailed with our ")[1].splitlines()
    assert head == (
        "classes: 5; wanting an error that ours does not have: 1; "
        "else not with stock's: 3"
    )
    assert sorted(only_ours) == [
        "test/test_differing.py::test_after_ours",
        "test/test_differing.py::test_with_ours[<function <lambda>>]",
        "test/test_import.py",
    ]


def test_only_what_failed_runs_again(result: _Result) -> None:
    ours, stock = result.printed.split("Once more with stock's classes: 5")
    assert "test_with_stock" in ours and "test_imported" not in ours
    assert "classes: stock" in stock
    assert "FAILED test/test_differing.py::test_with_both" in stock
    for name in ("test_with_ours", "test_after_ours"):
        assert f"PASSED test/test_differing.py::{name}" in stock
    assert "test_with_stock" not in stock and "test_place.py" not in stock


def test_tests_that_need_pytorch_memlab_are_skipped(result: _Result) -> None:
    pytorch_memlab = stock_tests.find_spec("pytorch_memlab")
    assert ("pytorch_memlab is not installed" in result.printed) == (not pytorch_memlab)
    assert "FAILED test/test_memory.py" not in result.printed


def test_failures_with_stock_do_not_count(sources: Path) -> None:
    # not even if another process runs them
    status, printed = _run(sources, "-n=1", "test/test_differing.py", "-k=with_both")
    assert "Failed with our classes: 1; " in printed
    assert "else not with stock's: 0" in printed
    assert status == 0


def test_limitations_of_stock_do_not_count(sources: Path) -> None:
    status, printed = _run(sources, "test/test_differing.py", "-k=not_supported")
    assert "does not have: 1; else not with stock's: 0" in printed
    assert status == 0


def test_stocks_classes_alone(sources: Path) -> None:
    status, printed = _run(sources, "--stock", "test/test_differing.py")
    assert "classes: stock" in printed and "classes: ours" not in printed
    assert "FAILED test/test_differing.py::test_with_stock" in printed
    assert "PASSED test/test_differing.py::test_with_ours" in printed
    assert status == 1 and "Failed with our" not in printed


def test_a_run_that_did_not_happen_is_no_success(sources: Path) -> None:
    assert _run(sources, "--no-such-option").status == pytest.ExitCode.USAGE_ERROR


def test_download_unpacks_the_installed_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stock_tests.metadata, "version", lambda name: "1.2.3")
    target = tmp_path / "target"

    def pip(command: list[Any], env: dict[str, str], check: bool) -> None:
        assert check and "backpack-for-pytorch==1.2.3" in command
        assert env["SETUPTOOLS_SCM_PRETEND_VERSION"] == "1.2.3"
        content = tmp_path / "content"
        content.mkdir()
        (content / "file").write_text("text")
        target.mkdir()
        with tarfile.open(target / "some.tar.gz", "w:gz") as archive:
            archive.add(content, "some")

    monkeypatch.setattr(stock_tests.subprocess, "run", pip)
    assert (
        stock_tests.download("backpack-for-pytorch", target) / "file"
    ).read_text() == "text"


PLACES = """\
from {place} import {name}


def test_ours():
    assert {name}.__module__.startswith("tn_extensions")


def test_toolkit_has_its_own():
    import {place}

    assert not {place}.{name}.__module__.startswith("tn_extensions")
"""


@pytest.mark.parametrize(
    ("toolkit", "place", "name"),
    [
        ("curvlinops", "curvlinops.kfac", "KFACLinearOperator"),
        ("laplace", "laplace.baselaplace", "KronLaplace"),
    ],
)
def test_classes_are_replaced_while_tests_are_imported(
    toolkit: str, place: str, name: str, tmp_path: Path
) -> None:
    """In the module that defines a class, other code means that class."""
    pytest.importorskip(toolkit)
    folder = tmp_path / stock_tests.TOOLKITS[toolkit].tests
    folder.mkdir()
    content = PLACES.format(place=place, name=name)
    # it is imported first
    (folder / "conftest.py").write_text(content.partition("def ")[0])
    (folder / "test_conftest.py").write_text(
        f"import conftest\n\n\ndef test_ours():\n"
        f"    assert conftest.{name}.__module__.startswith('tn_extensions')\n"
    )
    (folder / "test_places.py").write_text(content)
    status, printed = _run(tmp_path, f"--toolkit={toolkit}")
    assert status == 0, printed
    assert "3 passed" in printed


def test_sources_without_tests_are_refused(tmp_path: Path) -> None:
    status, printed = _run(tmp_path, "--toolkit=laplace")
    assert status == pytest.ExitCode.INTERRUPTED  # argparse's 2
    assert "must have a folder 'tests'. Name a checkout" in printed


def test_some_parameters_of_each_test(sources: Path) -> None:
    status, printed = _run(sources, "test/test_place.py", "--at-most=2")
    found = [line for line in printed.splitlines() if line.startswith("PASSED")]
    assert status == 0
    assert sum("::test_ours[" in line for line in found) == 2
    assert sum("::test_others_are_stocks" in line for line in found) == 1
