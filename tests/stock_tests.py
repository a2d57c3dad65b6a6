"""Does a toolkit's own test-suite pass with our classes in place of its own?

``python -m tests.stock_tests [pytest's arguments]``, for instance ``-n 2``, or
``-m montecarlo`` for the slow tests; ``--help`` lists the other options. The tests are
those of the installed version, from its source distribution. That of laplace-torch has
none: ``--sources`` must name a checkout of its repository. What fails is run once more
with stock's classes: exits with 1 if a test fails only with ours, unless it is about a
limitation of stock's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple
from unittest import SkipTest

ROOT = Path(__file__).parents[1]
PLUGIN = "plugin_of_stock_tests"


class Toolkit(NamedTuple):
    """A toolkit that we replace classes of.

    Args:
        distribution: Its name on PyPI.
        tests: Folder of the tests in its sources.
        ours: Our module, which exports classes of the same names.
        limitations: Matches ids of tests that want, or accept, an error where ours has
            results.
        places: Where users, and with them the tests, import classes from.
    """

    distribution: str
    tests: str
    ours: str
    limitations: str
    places: tuple[str, ...]


TOOLKITS = {
    "backpack": Toolkit(
        "backpack-for-pytorch",
        "test",
        "tn_extensions.backpack",
        r"_not_supported\[",
        (
            "backpack.extensions",
            "backpack.extensions.firstorder",
            "backpack.extensions.secondorder",
        ),
    ),
    "curvlinops": Toolkit(
        "curvlinops-for-pytorch",
        "test",
        "tn_extensions.curvlinops",
        r"_not_supported\[",
        ("curvlinops", "curvlinops.kfac", "curvlinops.ekfac"),
    ),
    "laplace": Toolkit(
        "laplace-torch",
        "tests",
        "tn_extensions.curvlinops.laplace",
        # halves, which stock cannot decompose (ours are of float32); laplace.Laplace,
        # which makes laplace's own class
        r"test_dtype\[.*-dtype0-Curvlinops|test_all_init\[KronLaplace-",
        (
            "laplace",
            # its classes use these names, too
            "laplace.baselaplace",
            "laplace.lllaplace",
            "laplace.curvature",
            "laplace.curvature.curvlinops",
            "laplace.utils",
            "laplace.utils.matrix",
        ),
    ),
}

# theirs needs a plugin to leave out the tests with many Monte-Carlo samples
CONFIGURATION = """\
[pytest]
addopts = --continue-on-collection-errors -m "not montecarlo"
testpaths = {tests}
markers =
    montecarlo: slow, takes many Monte-Carlo samples
filterwarnings =
    ignore:cannot collect test class 'TestProblem':pytest.PytestCollectionWarning:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests, those that fail with stock's classes, too; print which differ.

    Args:
        arguments: The command line. Default: the process's.

    Returns:
        0 if all that fails with ours fails with stock's, 1 if not. Otherwise, and with
        ``--stock``, pytest's status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tests.stock_tests",
        description=__doc__.splitlines()[0],
        epilog="All other arguments are pytest's.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--toolkit", choices=TOOLKITS, default="backpack", help="default: backpack")
    add("--sources", type=Path, metavar="PATH", help="unpacked (default: download)")
    add("--stock", action="store_true", help="run with stock's classes only")
    add(
        "--at-most",
        type=int,
        metavar="N",
        help="parameters of each test, evenly spaced (curvlinops has 15000 in all)",
    )
    args, others = parser.parse_known_args(arguments)
    toolkit = TOOLKITS[args.toolkit]
    with TemporaryDirectory(prefix="stock_tests-") as temporary:
        downloaded, folder = Path(temporary, "sources"), Path(temporary, "run")
        sources = args.sources or download(toolkit.distribution, downloaded)
        if not (sources / toolkit.tests).is_dir():
            parser.error(
                f"{toolkit.distribution}'s source distribution must have a folder "
                f"{toolkit.tests!r}. Name a checkout of its repository by --sources."
            )
        # the tests alone: beside them, the sources would hide the installed toolkit
        shutil.copytree(sources / toolkit.tests, folder / toolkit.tests)
        configuration = CONFIGURATION.format(tests=toolkit.tests)
        (folder / "pytest.ini").write_text(configuration, "utf-8")
        # not as tests.stock_tests: the toolkit's tests may have that package's name
        shutil.copy(__file__, folder / f"{PLUGIN}.py")

        some = [] if args.at_most is None else [f"--at-most={args.at_most}"]
        if args.stock:
            return _run(folder, [*others, *some])
        status = _run(folder, [*others, *some, f"--ours={args.toolkit}"])
        failed = _failed(folder)
        if not failed:
            return status
        print(f"\nOnce more with stock's classes: {len(failed)} that failed")
        _run(folder, [*others, "--last-failed", "--last-failed-no-failures=none"])
        with_stock = _failed(folder)
    only_ours = [name for name in failed if name not in with_stock]
    supported = [n for n in only_ours if re.search(toolkit.limitations, n)]
    only_ours = [name for name in only_ours if name not in supported]
    print(
        f"\nFailed with our classes: {len(failed)}; "
        f"wanting an error that ours does not have: {len(supported)}; "
        f"else not with stock's: {len(only_ours)}",
        *only_ours,
        sep="\n",
    )
    if only_ours:
        return 1
    # what failed is stock's fault, but an interrupted run has not tested all
    return 0 if status == 1 else status


def download(distribution: str, folder: Path) -> Path:
    """Fetch and unpack the source distribution of the installed version.

    Args:
        distribution: Its name on PyPI.
        folder: An empty folder to put it in.

    Returns:
        Path of the unpacked sources.
    """
    version = metadata.version(distribution)
    package = [f"{distribution}=={version}", "--no-binary", distribution, "--no-deps"]
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


def _run(folder: Path, arguments: Sequence[str]) -> int:
    """Run the tests in a process of their own, with this module as a plugin."""
    path = [str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", PLUGIN, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        check=False,
    ).returncode


def _failed(folder: Path) -> list[str]:
    """List the tests that failed, and the modules that cannot be imported."""
    cache = folder / ".pytest_cache" / "v" / "cache" / "lastfailed"
    return [*json.loads(cache.read_text("utf-8"))] if cache.exists() else []


# From here on, the plugin.


def pytest_addoption(parser: Any) -> None:
    """Add the options that the command passes."""
    parser.addoption("--ours", metavar="TOOLKIT")
    parser.addoption("--at-most", type=int)


def pytest_load_initial_conftests(early_config: Any) -> None:
    """Put our classes in place, before the tests' conftest.py or a test is imported."""
    name = early_config.known_args_namespace.ours
    if name is not None:
        early_config.stock_classes = replace_classes(TOOLKITS[name])


def replace_classes(toolkit: Toolkit) -> list[tuple[ModuleType, str, Any]]:
    """Let a toolkit's modules export our classes.

    Args:
        toolkit: The toolkit.

    Returns:
        Modules, names and stock's classes.
    """
    # it imports stock's modules
    ours = import_module(toolkit.ours)
    found = [
        (place, name, getattr(place, name))
        for place in map(import_module, toolkit.places)
        for name in ours.__all__
        if hasattr(place, name)
    ]
    for place, name, _ in found:
        setattr(place, name, getattr(ours, name))
    return found


def pytest_collection_finish(session: Any) -> None:
    """Give modules the classes back that they define, and call by their names.

    The tests have imported ours by now.
    """
    for place, name, stock in getattr(session.config, "stock_classes", []):
        if stock.__module__ == place.__name__:
            setattr(place, name, stock)


def pytest_report_header(config: Any) -> str:
    """Say whose classes are tested."""
    ours = dict.fromkeys(name for _, name, _ in getattr(config, "stock_classes", []))
    return f"classes: {', '.join(['ours', *ours] if ours else ['stock'])}"


def pytest_configure() -> None:
    """Skip the tests that need pytorch_memlab, which all others import."""
    if find_spec("pytorch_memlab") is None:
        stand_in: Any = ModuleType("pytorch_memlab")
        stand_in.MemReporter = _skip
        sys.modules[stand_in.__name__] = stand_in


def _skip() -> None:
    raise SkipTest("pytorch_memlab is not installed")


def pytest_generate_tests(metafunc: Any) -> None:
    """Let a test have the same id in every process."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        if mark.kwargs.get("ids") is str:
            mark.kwargs["ids"] = _without_addresses


def _without_addresses(parameter: object) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", str(parameter))


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keep so many parameters of each test."""
    limit = config.getoption("--at-most")
    if limit is None:
        return
    of_test: defaultdict[str, list[Any]] = defaultdict(list)
    for item in items:
        of_test[item.nodeid.partition("[")[0]].append(item)
    kept = {i for own in of_test.values() for i in own[:: -(-len(own) // limit)]}
    config.hook.pytest_deselected(items=[i for i in items if i not in kept])
    items[:] = [item for item in items if item in kept]


if __name__ == "__main__":
    sys.exit(main())
