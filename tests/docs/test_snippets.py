"""Every snippet of the README and of docs/ runs, and prints what the page says.

The snippets of a page run one after the other, in one process, as a reader would run
them.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES, README, blocks, name_of

OPTIONAL = ("lightning", "matplotlib", "sklearn", "transformers")
"""Libraries that some snippets need and the tests do not."""


@pytest.mark.usefixtures("cache")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=name_of
)
def test_snippets_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # what is run while the site is built finds the repository's files
    monkeypatch.chdir(DOCS.parent if "Path(" in page.read_text("utf-8") else tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    missing = set()
    for block in blocks(page, "python"):
        needed = {name for name in OPTIONAL if re.search(rf"\b{name}\b", block.text)}
        if absent := {name for name in needed if not importlib.util.find_spec(name)}:
            missing |= absent
            continue
        exec(compile(block.text, block.place, "exec"), names)
        printed = capsys.readouterr().out
        assert block.output in (None, printed), block.place
        assert "False" not in printed.split(), block.place
    if missing:
        pytest.skip(f"ran without the snippets that need {', '.join(sorted(missing))}")


def test_pages_have_snippets() -> None:
    assert len(blocks(README, "python")) >= 5
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 60


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_imports_of_diffs_exist(page: Path) -> None:
    """Both lines of an exchanged import can be imported."""
    for block in blocks(page, "diff"):
        lines = [line[1:] for line in block.text.splitlines() if line[:1] in "+-"]
        assert len(lines) >= 2, block.place
        for line in lines:
            exec(compile(line, block.place, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_languages_are_known(page: Path) -> None:
    """A fence of any other kind would go unchecked."""
    known = {"python", "text", "diff", "bash", "console"}
    assert {block.language for block in blocks(page)} <= known
