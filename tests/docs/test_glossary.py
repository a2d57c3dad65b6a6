"""The glossary explains words that are in use, each once."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import DOCS, ROOT

PAGE = (DOCS / "glossary.md").read_text("utf-8")
TITLES = re.findall(r"^\*\*(.+?)\.\*\*", PAGE, re.MULTILINE)
WORDS = [word.strip("`") for title in TITLES for word in title.split(", ")]
SOURCE = "\n".join(
    path.read_text("utf-8") for path in sorted((ROOT / "tn_extensions").rglob("*.py"))
)


def test_each_word_is_explained_once() -> None:
    assert len(WORDS) >= 50
    assert len({word.lower() for word in WORDS}) == len(WORDS)


@pytest.mark.parametrize("word", WORDS)
def test_word_is_in_use(word: str) -> None:
    stem = word.removesuffix("s").replace(" ", r"\s+")
    assert re.search(rf"(?i)\b{stem}", SOURCE), word


@pytest.mark.parametrize("name", sorted({*re.findall(r"`([A-Za-z_]{4,})`", PAGE)}))
def test_name_is_in_the_code(name: str) -> None:
    assert re.search(rf"\b{name}\b", SOURCE), name
