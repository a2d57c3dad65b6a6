"""Imports run downwards only (design section 2); pyproject.toml has the contracts."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
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


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("tn_extensions", "experiments"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_contracts_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("compiler/plan.py", "from tn_extensions import functional", "downwards"),
        ("network/methods.py", "import tn_extensions.diagram.figure", "downwards"),
        (
            "network/methods.py",
            "def f():\n    import tn_extensions.diagram",
            "downwards",
        ),
        ("network/nodes.py", "import tn_extensions.quantities", "downwards"),
        ("functional.py", "import tn_extensions.backpack", "downwards"),
        ("compiler/plan.py", "import tn_extensions", "downwards"),
        ("backpack/__init__.py", "import tn_extensions.optim", "downwards"),
        ("unheard_of.py", "import math", "downwards"),
        ("functional.py", "import experiments.harness", "experiments"),
        ("conv.py", "import torch", "symbolic"),
        ("network/rules/pair.py", "from torch import Tensor", "symbolic"),
        ("errors.py", "import tn_extensions.compiler.accumulator", "symbolic"),
        ("functional.py", "from backpack import extend", "BackPACK"),
        ("optim/singd.py", "import backpack.extensions", "BackPACK"),
        ("backpack/kfac.py", "import curvlinops", "imports curvlinops"),
        ("diagram/route.py", "import torch", "symbolic"),
        ("network/network.py", "import tn_extensions.diagram.layout", "downwards"),
        ("network/nodes.py", "import tn_extensions.network.network", "each other"),
        ("diagram/tikz.py", "import matplotlib", "matplotlib is optional"),
        ("curvlinops/kfac.py", "from laplace import Laplace", "laplace is optional"),
    ],
)
def test_contracts_catch(
    checkout: Path, module: str, statement: str, contract: str
) -> None:
    for folder in ("backpack", "optim"):
        package = checkout / "tn_extensions" / folder
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
    with (checkout / "tn_extensions" / module).open("a") as file:
        file.write(f"\n{statement}\n")
    result = lint_imports(checkout)
    assert result.returncode == 1, result.stdout + result.stderr
    broken = [line for line in result.stdout.splitlines() if " BROKEN" in line]
    assert any(contract in line for line in broken), result.stdout


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("backpack/kfac.py", "backpack"),
        ("curvlinops/kfac.py", "curvlinops"),
        ("curvlinops/laplace.py", "laplace"),
    ],
)
def test_contracts_allow_adapters(checkout: Path, module: str, package: str) -> None:
    path = checkout / "tn_extensions" / module
    path.parent.mkdir(exist_ok=True)
    (path.parent / "__init__.py").touch()
    with path.open("a") as file:
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


def imports(checkout: Path) -> dict[str, set[str]]:
    """Return each module's imports from the package, also those in functions."""
    files = {
        ".".join(path.relative_to(checkout).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in (checkout / "tn_extensions").rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        names: list[str] = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None and not node.level
                inner = (f"{node.module}.{alias.name}" for alias in node.names)
                names += [name if name in files else node.module for name in inner]
        found[module] = files.keys() & names
    return found


def test_no_modules_import_each_other() -> None:
    TopologicalSorter(imports(ROOT)).prepare()


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("curvlinops/inverse.py", "from tn_extensions.curvlinops import kfac"),
        ("network/nodes.py", "from tn_extensions.network import TensorNetwork"),
        ("quantities.py", "def f(): import tn_extensions.functional.gradients"),
        ("errors.py", "if TYPE_CHECKING: from tn_extensions.conv import Conv"),
    ],
)
def test_circles_are_found(checkout: Path, module: str, statement: str) -> None:
    with (checkout / "tn_extensions" / module).open("a") as file:
        file.write(f"\n{statement}\n")
    with pytest.raises(CycleError):
        TopologicalSorter(imports(checkout)).prepare()
