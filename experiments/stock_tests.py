"""Does BackPACK's own test-suite pass with our classes in place of its own?

``python -m experiments.stock_tests [pytest's arguments]``, for instance ``-n 2``, or
``-m montecarlo`` for the slow tests; ``--help`` lists the other options. The tests are
those of the installed version, from its source distribution. What fails is run once
more with stock's classes: exits with 1 if a test fails only with ours, unless it is
about a limitation of stock's.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple
from unittest import SkipTest

ROOT = Path(__file__).parents[1]
DISTRIBUTION = "backpack-for-pytorch"
PACKAGES = (
    "backpack.extensions",
    "backpack.extensions.firstorder",
    "backpack.extensions.secondorder",
)
"""Where users, and with them the tests, import extensions from."""

LIMITATION = "_not_supported["
"""In ids of tests that want an error where ours has results."""

# theirs needs a plugin to leave out the tests with many Monte-Carlo samples
CONFIGURATION = """\
[pytest]
addopts = --continue-on-collection-errors -m "not montecarlo"
testpaths = test
markers =
    montecarlo: slow, takes many Monte-Carlo samples
filterwarnings =
    ignore:cannot collect test class 'TestProblem':pytest.PytestCollectionWarning:
"""


class Outcome(NamedTuple):
    """What pytest reports.

    Args:
        status: Its exit status.
        failed: Ids of the tests that failed, and of modules that cannot be imported.
    """

    status: int
    failed: list[str]


def download(folder: Path) -> Path:
    """Fetch BackPACK's source distribution of the installed version.

    Args:
        folder: An empty folder to put it in.

    Returns:
        Path of the unpacked sources.
    """
    version = metadata.version(DISTRIBUTION)
    package = [f"{DISTRIBUTION}=={version}", "--no-binary", DISTRIBUTION, "--no-deps"]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", *package, "-d", folder],
        # outside of its repository the sources do not know their version
        env=os.environ | {"SETUPTOOLS_SCM_PRETEND_VERSION": version},
        check=True,
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    (sources,) = (path for path in folder.iterdir() if path.is_dir())
    return sources


def prepare(sources: Path, folder: Path) -> None:
    """Copy the tests alone: beside them, the sources would hide the installed BackPACK.

    Args:
        sources: Unpacked source distribution.
        folder: Where to run the tests; must not exist.
    """
    shutil.copytree(sources / "test", folder / "test")
    (folder / "pytest.ini").write_text(CONFIGURATION, "utf-8")


def run(
    folder: Path, arguments: Sequence[str], only: Sequence[str] | None = None
) -> Outcome:
    """Run the tests in a process of their own, with this module as a plugin.

    Args:
        folder: What :func:`prepare` made.
        arguments: For pytest.
        only: Ids of the tests to run. Default: all that ``arguments`` select.

    Returns:
        The exit status and what failed.
    """
    log, selection = folder / "failed.txt", folder / "selection.txt"
    log.write_text("", "utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "experiments.stock_tests"]
    command += [f"--log-failed={log}"]
    if only is not None:
        selection.write_text("\n".join(only), "utf-8")
        command += [f"--selection={selection}"]
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    status = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        check=False,
    ).returncode
    failed = dict.fromkeys(log.read_text("utf-8").splitlines())
    return Outcome(status, list(failed))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests, those that fail with stock's classes, too; print which differ.

    Args:
        arguments: The command line. Default: the process's.

    Returns:
        0 if all that fails with ours fails with stock's, 1 if not. Otherwise, and with
        ``--stock``, pytest's status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.stock_tests",
        description=__doc__.splitlines()[0],
        epilog="All other arguments are pytest's.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--sources", type=Path, metavar="PATH", help="unpacked (default: download)")
    add("--stock", action="store_true", help="run with stock's classes only")
    args, others = parser.parse_known_args(arguments)

    with TemporaryDirectory(prefix="stock_tests-") as temporary:
        downloaded, folder = Path(temporary, "sources"), Path(temporary, "run")
        prepare(args.sources or download(downloaded), folder)
        if args.stock:
            return run(folder, [*others, "--stock-classes"]).status
        ours = run(folder, others)
        if not ours.failed:
            return ours.status
        print(f"\nOnce more with stock's classes: {len(ours.failed)} that failed")
        stock = run(folder, [*others, "--stock-classes"], only=ours.failed)
    only_ours = [name for name in ours.failed if name not in stock.failed]
    supported = [name for name in only_ours if LIMITATION in name]
    only_ours = [name for name in only_ours if name not in supported]
    print(
        f"\nFailed with our classes: {len(ours.failed)}; "
        f"wanting an error that ours does not have: {len(supported)}; "
        f"else not with stock's: {len(only_ours)}",
        *only_ours,
        sep="\n",
    )
    if only_ours:
        return 1
    # what failed is stock's fault, but an interrupted run has not tested all
    return 0 if ours.status == 1 else ours.status


# From here on, the plugin.


def pytest_addoption(parser: Any) -> None:
    """Options that :func:`run` passes."""
    parser.addoption("--stock-classes", action="store_true")
    parser.addoption("--log-failed", metavar="PATH")
    parser.addoption("--selection", metavar="PATH")


def pytest_configure(config: Any) -> None:
    """Put our classes in place, before a test is imported."""
    if not config.getoption("--stock-classes"):
        replace_classes()
    if find_spec("pytorch_memlab") is None:
        stand_in: Any = ModuleType("pytorch_memlab")
        stand_in.MemReporter = _NoMemReporter
        sys.modules[stand_in.__name__] = stand_in
    # pytest-xdist's workers report to the process that started them
    if not hasattr(config, "workerinput") and config.getoption("--log-failed"):
        config.pluginmanager.register(
            _FailureLog(Path(config.getoption("--log-failed")))
        )


def replace_classes() -> list[str]:
    """Let BackPACK's packages export our classes.

    Returns:
        Names of the classes.
    """
    # they import stock's, which must have happened before
    ours = import_module("tn_extensions.backpack")
    packages = [import_module(name) for name in PACKAGES]
    names = [name for name in ours.__all__ if hasattr(packages[0], name)]
    for package in packages:
        for name in names:
            if hasattr(package, name):
                setattr(package, name, getattr(ours, name))
    return names


def pytest_report_header(config: Any) -> str:
    """Say whose classes are tested."""
    if config.getoption("--stock-classes"):
        return "classes: stock's"
    return f"classes: ours, {', '.join(replace_classes())}"


def pytest_generate_tests(metafunc: Any) -> None:
    """Let a test have the same id in every process."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        if mark.kwargs.get("ids") is str:
            mark.kwargs["ids"] = _without_addresses


def _without_addresses(parameter: object) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", str(parameter))


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keep the selected tests."""
    if config.getoption("--selection"):
        path = Path(config.getoption("--selection"))
        selected = {*path.read_text("utf-8").splitlines()}
        others = [item for item in items if item.nodeid not in selected]
        items[:] = [item for item in items if item.nodeid in selected]
        config.hook.pytest_deselected(items=others)


class _FailureLog:
    """Writes the id of each test that fails, or module that cannot be imported.

    Args:
        path: Of the file, to which it appends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test has run."""
        if report.failed:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{report.nodeid}\n")

    pytest_collectreport = pytest_runtest_logreport


class _NoMemReporter:
    """Skips the tests that need pytorch_memlab, which all others import."""

    def __init__(self) -> None:
        raise SkipTest("pytorch_memlab is not installed")


if __name__ == "__main__":
    sys.exit(main())
