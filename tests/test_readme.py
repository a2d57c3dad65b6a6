"""The README is short, and renders outside of the repository, as on PyPI.

Its snippets and commands are tested with those of docs/, in ``tests/docs``.
"""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import DOCS, README, ROOT, blocks

TEXT = README.read_text("utf-8")
SITE = "https://tn-extensions.github.io/tn_extensions/"
RAW = "https://raw.githubusercontent.com/tn-extensions/tn_extensions/main/"
BLOB = "https://github.com/tn-extensions/tn_extensions/blob/main/"
LINKS = sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT)))


def test_is_short() -> None:
    assert len(TEXT.splitlines()) <= 150


def test_first_result_is_at_most_one_screen_down() -> None:
    assert TEXT.index("```python") < TEXT.index("## Install")
    assert TEXT[: TEXT.index("```python")].count("\n") <= 32


def test_each_way_in_takes_few_lines() -> None:
    first, *ways = blocks(README, "python")
    assert first.output
    for block in ways:
        lines = [line for line in block.text.splitlines() if line]
        assert len(lines) <= 5, block.place


@pytest.mark.parametrize("link", LINKS)
def test_link_is_absolute_and_leads_somewhere(link: str) -> None:
    assert link.startswith("https://")
    for prefix in (RAW, BLOB):
        if link.startswith(prefix):
            assert (ROOT / link.removeprefix(prefix)).exists()
    if link.startswith(SITE):
        page = link.removeprefix(SITE).partition("#")[0].rstrip("/")
        assert (DOCS / f"{page or 'index'}.md").exists() or (
            DOCS / page / "index.md"
        ).exists()
