"""Every snippet, command and link of the README and of docs/ is true."""

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
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FLAGS = re.MULTILINE | re.DOTALL
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", FLAGS)
SHELLS = ("bash", "console", "sh", "shell")


class Block(NamedTuple):
    """A fenced block, where it is (page and line), and what is said to come out."""

    place: str
    language: str
    text: str
    output: str | None


def blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in FENCE.finditer(text):
            if match[1] in languages:
                line = text[: match.start()].count("\n") + 1
                place = f"{page.relative_to(ROOT)}:{line}"
                after = re.match(r"\n\n```text\n(.*?)^```$", text[match.end() :], FLAGS)
                output = after[1] if after else None
                found.append(Block(place, match[1], match[2], output))
    return found


def commands() -> list[str]:
    lines = (line for block in blocks(*SHELLS) for line in block.text.splitlines())
    return sorted({line.removeprefix("$ ") for line in lines if line.strip()})


def check(command: str) -> None:
    """Check a command without running it: ``make test`` would come back here."""
    words = shlex.split(command, comments=True)
    match words:
        case ["make", *arguments]:
            check_make(arguments)
        case ["python", "-m", "pip", "install", *packages]:
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
    """Run it: of a snippet that names itself so."""
    texts = [b.text for b in blocks("python") if b.text.startswith(f"# {script}\n")]
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
    match = re.fullmatch(r"\.(?:\[(.+)\])?", package)
    assert match, f"{package} is not this package"
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = match[1].split(",") if match[1] else []
    assert set(extras) <= set(config["options.extras_require"])


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.place)
def test_snippet_runs(
    block: Block,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "import Laplace" in block.text:
        pytest.importorskip("laplace", reason="the extra is not installed")
    for library in ("lightning", "transformers"):
        if f"import {library}\n" in block.text:
            pytest.importorskip(library, reason="no extra needs it")
    if ".draw(" in block.text:
        pytest.importorskip("matplotlib", reason="the extra is not installed")
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})
    if block.output is not None:
        assert capsys.readouterr().out == block.output


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


def test_readme_has_snippets_and_both_commands() -> None:
    assert len(blocks("python")) >= 3
    assert {line.split("#")[0].strip() for line in commands()} >= {
        "make demo",
        "make test",
    }


def test_languages_are_known() -> None:
    """A fence of any other kind would go unchecked."""
    for page in PAGES:
        kinds = {match[1] for match in FENCE.finditer(page.read_text("utf-8"))}
        assert kinds <= {"python", "text", *SHELLS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_named_paths_exist() -> None:
    """Paths in the README's prose and tables."""
    text = (ROOT / "README.md").read_text("utf-8")
    for path in re.findall(r"`((?:tn_extensions|experiments|\.ci)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path
