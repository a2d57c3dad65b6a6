"""Imports run downwards only (design section 2); pyproject.toml has the contracts."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SYMBOLIC = ("conv", "errors", "quantities", "recognise", "network", "diagram")

# Imports symbolic modules below an empty `tn_extensions`: the real one imports all.
IMPORT_WITHOUT_TORCH = """
import importlib, pkgutil, sys, types

package = types.ModuleType("tn_extensions")
package.__path__ = ["tn_extensions"]
sys.modules["tn_extensions"] = package
sys.modules["torch"] = None  # importing it raises ImportError

for name in sys.argv[1:]:
    module = importlib.import_module(f"tn_extensions.{name}")
    print(module.__name__)
    path = getattr(module, "__path__", ())
    for info in pkgutil.walk_packages(path, f"{module.__name__}."):
        print(importlib.import_module(info.name).__name__)
"""


def lint_imports(checkout: Path) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command as main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--no-logo"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )


def import_without_torch(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT_TORCH, *SYMBOLIC],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )


def copied(path: Path) -> Path:
    """Copy what the contracts are about."""
    for name in ("tn_extensions", "experiments"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", path)
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copied(tmp_path)


def test_contracts_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


VIOLATIONS = [
    ("compiler/plan.py", "from tn_extensions import functional", "downwards"),
    ("network/methods.py", "import tn_extensions.diagram.figure", "downwards"),
    ("network/methods.py", "def f():\n    import tn_extensions.diagram", "downwards"),
    ("network/nodes.py", "import tn_extensions.quantities", "downwards"),
    ("functional.py", "import tn_extensions.backpack", "downwards"),
    ("compiler/plan.py", "import tn_extensions", "downwards"),
    ("backpack/__init__.py", "import tn_extensions.optim", "downwards"),
    ("functional.py", "import experiments", "experiments"),
    ("conv.py", "import torch", "symbolic"),
    ("network/rules/pair.py", "from torch import Tensor", "symbolic"),
    ("errors.py", "import tn_extensions.compiler.accumulator", "downwards"),
    ("functional.py", "from backpack import extend", "BackPACK"),
    ("optim/singd.py", "import backpack.extensions", "BackPACK"),
    ("backpack/kfac.py", "import curvlinops", "imports curvlinops"),
    ("diagram/route.py", "import torch", "symbolic"),
    ("network/network.py", "import tn_extensions.diagram.layout", "downwards"),
    ("diagram/tikz.py", "import matplotlib", "matplotlib is optional"),
    ("curvlinops/kfac.py", "from laplace import Laplace", "laplace is optional"),
]
"""Modules, imports that they must not have, and a part of the contract's name."""


def imported_by(statement: str) -> str:
    """Return the module that a statement imports, as reports name it."""
    first, module, *names = re.findall(r"[\w.]+", statement.splitlines()[-1])
    external = not module.startswith("tn_extensions")
    if external or first == "import":
        return module.split(".")[0] if external else module
    return f"{module}.{names[-1]}"


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Violate all contracts at once, and return the report on each."""
    root = copied(tmp_path_factory.mktemp("broken"))
    violations = [(module, statement) for module, statement, _ in VIOLATIONS]
    violations += [("unheard_of.py", "import math")]
    violations += [("network/nodes.py", "import tn_extensions.network.network")]
    for module, statement in violations:
        with (root / "tn_extensions" / module).open("a") as file:
            file.write(f"\n{statement}\n")
    result = lint_imports(root)
    assert result.returncode == 1, result.stdout + result.stderr
    _, reports = result.stdout.split("Broken contracts\n")
    parts = re.split(r"^(.+)\n-{4,}\n", reports, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def report_on(contract: str, broken: dict[str, str]) -> str:
    (report,) = (text for name, text in broken.items() if contract in name)
    return report


@pytest.mark.parametrize(("module", "statement", "contract"), VIOLATIONS)
def test_contracts_catch(
    broken: dict[str, str], module: str, statement: str, contract: str
) -> None:
    name = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    arrow = f"tn_extensions.{name} -> {imported_by(statement)} (l."
    assert arrow in report_on(contract, broken)


def test_contracts_catch_what_is_not_listed(broken: dict[str, str]) -> None:
    assert "- tn_extensions.unheard_of" in report_on("downwards", broken)


def test_contracts_catch_circles(broken: dict[str, str]) -> None:
    assert "- .nodes -> .network (1 import)" in report_on("each other", broken)


def test_contracts_allow_adapters(checkout: Path) -> None:
    for module, package in (
        ("backpack/kfac.py", "backpack"),
        ("curvlinops/kfac.py", "curvlinops"),
        ("curvlinops/laplace.py", "laplace"),
    ):
        with (checkout / "tn_extensions" / module).open("a") as file:
            file.write(f"\nimport {package}\n")
    result = lint_imports(checkout)
    assert result.returncode == 0, result.stdout + result.stderr


def test_symbolic_modules_run_without_torch() -> None:
    result = import_without_torch(ROOT)
    assert result.returncode == 0, result.stderr
    imported = set(result.stdout.split())
    files = [ROOT / "tn_extensions" / f"{name}.py" for name in SYMBOLIC]
    for folder in ("network", "diagram"):
        files += (ROOT / "tn_extensions" / folder).rglob("*.py")
    expected = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in files
        if path.exists()
    }
    assert imported == expected


def test_import_without_torch_catches(checkout: Path) -> None:
    with (checkout / "tn_extensions/network/rules/pair.py").open("a") as file:
        file.write('\n__import__("torch")\n')  # which no static check sees
    result = import_without_torch(checkout)
    assert result.returncode != 0
    assert "torch" in result.stderr


@cache
def imports_of(code: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return modules that code imports, also in functions, and names from each."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level
            found.append((node.module, tuple(alias.name for alias in node.names)))
    return tuple(found)


def imports(changed: str = "", added: str = "") -> dict[str, set[str]]:
    """Return each module's imports from the package, with one added to a module."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in (ROOT / "tn_extensions").rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        is_changed = path == ROOT / "tn_extensions" / changed
        names: list[str] = []
        code = path.read_text("utf-8")
        for one in (code, added) if is_changed else (code,):
            for package, parts in imports_of(one):
                inner = [f"{package}.{part}" for part in parts] or [package]
                names += [name if name in files else package for name in inner]
        found[module] = files.keys() & names
    return found


def test_no_modules_import_each_other() -> None:
    TopologicalSorter(imports()).prepare()


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("curvlinops/inverse.py", "from tn_extensions.curvlinops import kfac"),
        ("network/nodes.py", "from tn_extensions.network import TensorNetwork"),
        ("quantities.py", "def f(): import tn_extensions.functional.gradients"),
        ("errors.py", "if TYPE_CHECKING: from tn_extensions.conv import Conv"),
    ],
)
def test_circles_are_found(module: str, statement: str) -> None:
    with pytest.raises(CycleError):
        TopologicalSorter(imports(module, statement)).prepare()
