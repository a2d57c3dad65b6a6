"""The package's metadata, what its distributions hold, and the shape of its files."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import tn_extensions

ROOT = Path(__file__).parents[1]
CODE = ("docs", "experiments", "tests", "tn_extensions")
MODULES = sorted(path for name in CODE for path in (ROOT / name).rglob("*.py"))
PACKAGE_MODULES = sorted((ROOT / "tn_extensions").rglob("*.py"))
PACKAGE_FILES = [*PACKAGE_MODULES, ROOT / "tn_extensions/py.typed"]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution from a copy, since setuptools writes into it."""
    source = tmp_path_factory.mktemp("source")
    for name in CODE:
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for path in (path for path in ROOT.iterdir() if path.is_file()):
        shutil.copy(path, source)
    target = tmp_path_factory.mktemp("sdist")
    code = "import sys; from setuptools import build_meta as build"
    run("-c", f"{code}; build.build_sdist(sys.argv[1])", str(target), cwd=source)
    (path,) = target.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, sdist: Path) -> zipfile.ZipFile:
    """Build the wheel from the source distribution, as installers do."""
    target = tmp_path_factory.mktemp("wheel")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
    run("-m", "pip", "wheel", *options, "-w", str(target), str(sdist), cwd=target)
    (path,) = target.glob("*.whl")
    return zipfile.ZipFile(path)


def run(*arguments: str, cwd: Path) -> None:
    """Run Python in a folder."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_sdist_holds_the_package_and_its_metadata(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        files = [member.name for member in archive.getmembers() if member.isfile()]
    names = {name.partition("/")[2] for name in files}
    metadata = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md"}
    metadata |= {"PKG-INFO", "pyproject.toml", "setup.cfg"}
    package = {relative(path) for path in PACKAGE_FILES}
    made = {name for name in names if name.startswith("tn_extensions.egg-info/")}
    assert names - made == metadata | package


def test_wheel_holds_the_typed_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {n for n in wheel.namelist() if ".dist-info/" not in n}
    assert names == {relative(path) for path in PACKAGE_FILES}
    assert any(n.endswith("LICENSE") for n in wheel.namelist())


def test_wheel_metadata(metadata: Message) -> None:
    assert metadata["Name"] == "tn-extensions"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "MIT" in {metadata["License"], metadata["License-Expression"]}
    required = {
        re.split("[^a-z_-]", line)[0]
        for line in metadata.get_all("Requires-Dist", [])
        if "extra ==" not in line
    }
    packages = {"backpack-for-pytorch", "curvlinops-for-pytorch", "opt_einsum"}
    assert required == packages | {"filelock", "numpy", "torch", "tqdm"}
    extras = set(metadata.get_all("Provides-Extra", []))
    assert extras == {
        "bench",
        "captum",
        "demo",
        "dev",
        "diagram",
        "docs",
        "kronfluence",
        "laplace",
        "lint",
        "opacus",
        "singd",
        "test",
    }


def test_version_has_one_source(metadata: Message) -> None:
    version = tn_extensions.__version__
    assert metadata["Version"] == version
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", version)
    # a dependency's version may be the same by chance, in quotes it is ours
    quoted = re.compile(f"[\"']{re.escape(version)}[\"']")
    files = [*MODULES, ROOT / "setup.cfg", ROOT / "pyproject.toml"]
    places = [relative(p) for p in files if quoted.search(p.read_text("utf-8"))]
    assert places == ["tn_extensions/__init__.py"]


def test_installs_what_is_imported() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    required = config["options"]["install_requires"]
    plugs = ("captum", "kronfluence", "laplace", "opacus", "singd")
    optional = (extras[name] for name in ("diagram", *plugs))
    installed = required + "".join(optional)
    (included,) = re.findall(r"tn-extensions\[(.*)\]", extras["bench"])
    contenders = [extras[name] for name in included.split(",")]
    benchmarks = required + extras["bench"] + "".join(contenders)
    everything = installed + extras["test"] + benchmarks
    distributions = {
        "PIL": "pillow",
        "backpack": "backpack-for-pytorch",
        "curvlinops": "curvlinops-for-pytorch",
        "importlinter": "import-linter",
        "laplace": "laplace-torch",
        "sklearn": "scikit-learn",
    }
    for scope, available in (
        # an import contract says which module may import an optional package
        (["tn_extensions"], installed),
        (["experiments"], benchmarks),
        (["tests"], everything),
    ):
        names = {re.split("[^A-Za-z_-]", line)[0] for line in available.split()}
        known = sys.stdlib_module_names | {*CODE}
        for package in imported(scope) - known:
            assert distributions.get(package, package) in names, f"{scope}: {package}"


def imported(folders: list[str]) -> set[str]:
    """Top-level packages that the modules in some folders import."""
    packages = set()
    for path in (
        path for path in MODULES if path.relative_to(ROOT).parts[0] in folders
    ):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                packages |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                packages.add(str(node.module).split(".")[0])
    return packages


def test_changelog_and_citation_have_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert versions[:2] == ["Unreleased", tn_extensions.__version__]
    for version in versions:  # each is a link at the end of the page
        assert f"\n[{version}]: https://" in text
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {tn_extensions.__version__}\n" in citation
    (released,) = re.findall(r'date-released: "(.+)"', citation)
    assert f"## [{tn_extensions.__version__}] - {released}\n" in text


def test_workflows_run_what_is_supported() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    classifiers = config["metadata"]["classifiers"]
    pythons = re.findall(r"Python :: (3\.\d+)", classifiers)
    (oldest,) = re.findall(
        r"^torch>=(.+)", config["options"]["install_requires"], re.MULTILINE
    )
    text = (ROOT / ".github/workflows/tests.yml").read_text("utf-8")
    assert f"python: {pythons}".replace("'", '"') in text
    assert f'torch: "{oldest}"' in text
    assert config["options"]["python_requires"] == f">={pythons[0]}"


def test_commands_and_paths_exist() -> None:
    """Check what workflows and the guide for contributors name."""
    pages = [*(ROOT / ".github").rglob("*.*"), ROOT / "CONTRIBUTING.md"]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    targets = set(re.findall(r"(?:`|run: )make ([a-z-]+)", text))
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert {"docs", "lint", "test"} <= targets
    assert targets <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    prefix = r"(?:docs|experiments|tests|tn_extensions)"
    paths = set(re.findall(rf"[`(]({prefix}(?:/[\w.]+)*)[`)]", text))
    assert len(paths) > 10
    # a place in a pattern of names
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert missing == {"tn_extensions/a/b.py", "tests/a/test_b.py"}


TESTED_TOGETHER = {
    "backpack/adapted.py": "backpack/test_suite.py",
    "backpack/modules.py": "backpack/test_suite.py",
    "compiler/primitives/crossed.py": "compiler/primitives/test_halves.py",
    "compiler/primitives/khatri_rao.py": "compiler/primitives/test_halves.py",
    "compiler/primitives/patch_gram.py": "compiler/primitives/test_halves.py",
    "curvlinops/ggn_diagonal.py": "curvlinops/test_ggn.py",
    "curvlinops/ggn_gram.py": "curvlinops/test_ggn.py",
    "diagram/label.py": "diagram/test_layout.py",
    "diagram/ports.py": "diagram/test_layout.py",
    "diagram/scene.py": "diagram/test_layout.py",
    "diagram/wiring.py": "diagram/test_layout.py",
}
"""Modules without a test module of their own, and where they are tested."""


def test_every_module_has_its_test_module() -> None:
    package, tests = ROOT / "tn_extensions", ROOT / "tests"
    modules = {path.relative_to(package) for path in PACKAGE_MODULES}
    untested = {
        str(path)
        for path in modules
        if not path.name.startswith("__")
        and not (tests / path.with_name(f"test_{path.name}")).exists()
    }
    assert untested == set(TESTED_TOGETHER)
    assert all((tests / place).exists() for place in TESTED_TOGETHER.values())


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    # an empty __init__.py only makes a folder a package
    assert ast.get_docstring(tree) or (path.name == "__init__.py" and not tree.body)
    assert not {"common", "helper", "helpers", "misc", "util", "utils"} & {
        path.stem,
        *path.relative_to(ROOT).parts,
    }
