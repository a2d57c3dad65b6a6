"""Every command of the README and of docs/ exists."""

from __future__ import annotations

import configparser
import importlib.util
import os
import pydoc
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, SHELLS, blocks


def commands() -> list[str]:
    """Return all lines of blocks for a shell."""
    found = (block for page in PAGES for block in blocks(page, *SHELLS))
    lines = (line for block in found for line in block.text.splitlines())
    return sorted({line.removeprefix("$ ") for line in lines if line.strip()})


def check(command: str) -> None:
    """Check a command without running it: ``make test`` would come back here."""
    words = shlex.split(command, comments=True)
    match words:
        case ["make", *arguments]:
            check_make(arguments)
        case [program, "-m", "pip", "install", *packages] if "python" in program:
            for package in packages:
                check_install(package)
        case ["python", "-m", "pydoc", name]:
            assert pydoc.locate(name) is not None
        case ["torchrun", *options, script]:
            check_torchrun(options, script)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), f"no module {module}"
        case _:
            raise AssertionError(f"teach this test to check {command!r}")


def check_make(arguments: list[str]) -> None:
    """Check targets and variables of make."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = [word for word in arguments if "=" not in word]
    assert targets, "a command names what it makes"
    for variable in (word.split("=")[0] for word in arguments if "=" in word):
        assert f"$({variable})" in makefile, f"make has no variable {variable}"
    result = subprocess.run(
        ["make", "--dry-run", *targets],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def check_torchrun(options: list[str], script: str) -> None:
    """Run the snippet that names itself so."""
    found = (block for page in PAGES for block in blocks(page, "python"))
    texts = [b.text for b in found if b.text.startswith(f"# {script}\n")]
    assert len(texts) == 1, f"no snippet is {script}"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / script).write_text(texts[0], "utf-8")
        result = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *options, script],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert result.returncode == 0, result.stderr


def check_install(package: str) -> None:
    """Check that a requirement is this package, with extras that it has."""
    match = re.fullmatch(r"\.(?:\[(.+)\])?", package)
    assert match, f"{package} is not this package"
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = match[1].split(",") if match[1] else []
    assert set(extras) <= set(config["options.extras_require"])


@pytest.mark.parametrize("command", commands())
def test_command_exists(command: str) -> None:
    check(command)


@pytest.mark.parametrize(
    "command",
    [
        "make no-such-target",
        "make test NO_SUCH_VARIABLE=1",
        "python -m experiments.no_such_module",
        "python -m pip install .[no_such_extra]",
        "python -m pip install something_else",
        "python -m pydoc tn_extensions.no_such_module",
        "torchrun --nproc-per-node 2 no_such_script.py",
        "curl something",
    ],
)
def test_checks_catch(command: str) -> None:
    with pytest.raises(AssertionError):
        check(command)


def test_both_commands_are_there() -> None:
    found = {line.split("#")[0].strip() for line in commands()}
    assert found >= {"make demo", "make test", "make docs"}
