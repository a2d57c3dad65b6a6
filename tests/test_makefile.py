"""The Makefile sets an environment up once, and again only if it has to.

Runs the real Makefile with a Python that stands in for the slow parts: it makes no
environment but a folder with itself in it, and writes down what it was called for.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

STAND_IN = f"""#!/bin/sh
log() {{ echo "$*" >> "$CALLS"; }}
case "$*" in
    "-m venv "*)
        log venv
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        ;;
    "-m pip "*)
        log pip
        if [ -n "$PIP_HANGS" ]; then sleep 60; fi
        exit "${{PIP_STATUS:-0}}"
        ;;
    "-m "*) log "$2 $PYTHONPATH" ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""


class Project:
    """A checkout that has only what the Makefile reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        for name in ("Makefile", "setup.cfg", "pyproject.toml"):
            shutil.copy(ROOT / name, path)
        self.log = path / "calls"
        self.python = path / "python-stand-in"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        # a make that runs these tests must not pass its variables on
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not re.match("MAKE|MFLAGS|VENV$|PYTHON|JOBS$", name)
        }
        self.environment |= {"CALLS": str(self.log), "PYTHON": str(self.python)}

    def make(
        self, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", *arguments],
            cwd=self.path,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        """Return what has been run since the last call."""
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [call.split()[0] for call in calls]

    def change(self, name: str) -> None:
        with (self.path / name).open("a") as file:
            file.write("\n# changed\n")

    def key(self) -> str:
        result = self.make("--silent", "venv-key")
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.mark.parametrize(
    ("target", "module"),
    [
        ("test", "pytest"),
        ("demo", "experiments.demo"),
        ("bench", "experiments"),
        ("docs", "mkdocs"),
        ("docs-figures", "docs.gallery"),
    ],
)
def test_sets_up_once(project: Project, target: str, module: str) -> None:
    assert project.make(target).returncode == 0
    assert project.calls() == ["venv", "pip", module]
    assert project.make(target).returncode == 0
    assert project.calls() == [module]


def test_two_other_processors(project: Project) -> None:
    assert project.make("test-processors").returncode == 0
    assert project.calls() == ["venv", "pip", "pytest", "pytest"]


@pytest.mark.parametrize("name", ["setup.cfg", "pyproject.toml"])
def test_metadata_decides_on_reuse(project: Project, name: str) -> None:
    project.make("venv")
    key = project.key()
    assert re.fullmatch("[0-9a-f]{16}", key)
    project.calls()

    (project.path / name).touch()
    project.change("Makefile")
    assert project.key() == key
    project.make("venv")
    assert project.calls() == []

    (project.path / ".venv/of-the-old-one").touch()
    project.change(name)
    assert project.key() != key
    assert project.make("venv").returncode == 0
    assert project.calls() == ["venv", "pip"]
    assert not (project.path / ".venv/of-the-old-one").exists()


def test_failed_installation_is_repeated(project: Project) -> None:
    assert project.make("test", PIP_STATUS="1").returncode != 0
    assert project.calls() == ["venv", "pip"]
    assert project.make("test").returncode == 0
    assert project.calls() == ["venv", "pip", "pytest"]


def test_interrupted_installation_is_repeated(project: Project) -> None:
    process = subprocess.Popen(
        ["make", "test"],
        cwd=project.path,
        env=project.environment | {"PIP_HANGS": "yes"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # what shells run in the background ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not (project.log.exists() and "pip" in project.log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    while process.poll() is None:  # a process that just starts may miss the first one
        assert time.monotonic() < deadline
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        time.sleep(0.2)
    assert process.returncode != 0
    project.calls()
    assert project.make("test").returncode == 0
    assert project.calls() == ["venv", "pip", "pytest"]


@pytest.mark.parametrize("target", ["test", "distclean"])
def test_foreign_environment_is_left_alone(project: Project, target: str) -> None:
    precious = project.path / "elsewhere/precious"
    precious.parent.mkdir()
    precious.touch()
    result = project.make(target, "VENV=elsewhere")
    assert result.returncode != 0
    assert "elsewhere was not made by this Makefile" in result.stderr
    assert precious.exists()
    assert project.calls() == []


def test_shared_environment_runs_code_of_the_checkout(tmp_path: Path) -> None:
    shared = f"VENV={tmp_path / 'shared'}"
    first, second = (Project(tmp_path / name) for name in ("first", "second"))
    assert first.make("test", shared).returncode == 0
    assert second.make("test", shared, PYTHONPATH="/more").returncode == 0
    assert second.log.read_text() == f"pytest {second.path}:/more\n"


@pytest.mark.parametrize("target", ["test", "venv-key"])
def test_python_is_too_old_or_missing(project: Project, target: str) -> None:
    old = project.path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for python in ("no-such-python", str(old)):
        result = project.make(target, f"PYTHON={python}")
        assert result.returncode != 0
        assert f"no Python >= 3.11 found (tried: {python})" in result.stderr
        assert project.calls() == []
    assert project.make("help", "PYTHON=no-such-python").returncode == 0


def test_python_is_found(project: Project) -> None:
    folder = project.path / "bin"
    folder.mkdir()
    for tool in ("ls", "rm", "mkdir", "touch", "mv", "cp", "make", "sh"):
        path = shutil.which(tool)
        assert path
        (folder / tool).symlink_to(path)
    del project.environment["PYTHON"]
    result = project.make("test", PATH=str(folder))
    assert "no Python >= 3.11 found (tried: python3.11 python3)" in result.stderr

    # python3.11 may exist and not work, as pyenv's do where it is not selected
    (folder / "python3.11").write_text("#!/bin/sh\nexit 127\n")
    (folder / "python3.11").chmod(0o755)
    shutil.copy(project.python, folder / "python3")
    assert project.make("test", PATH=str(folder)).returncode == 0
    assert project.calls() == ["venv", "pip", "pytest"]


def test_distclean_removes_what_make_made(project: Project) -> None:
    project.make("venv")
    assert project.make("distclean").returncode == 0
    assert not (project.path / ".venv").exists()
