"""The README and the pages of docs/, and the fenced blocks in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
RESULTS = DOCS / "results"
"""Reports of measurements, which are not written by hand."""

PAGES = [
    README,
    *(page for page in sorted(DOCS.rglob("*.md")) if RESULTS not in page.parents),
]
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = ("bash", "console")


class Block(NamedTuple):
    """A fenced block.

    Args:
        place: Page and line.
        language: The first word after the fence.
        text: What the block holds.
        output: The block of text that follows at once; None if there is none.
    """

    place: str
    language: str
    text: str
    output: str | None


def name_of(page: Path) -> str:
    """Return the path of a page in the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of a page in some languages; of all, if none is named."""
    text = page.read_text("utf-8")
    found = []
    for match in FENCE.finditer(text):
        if not languages or match[1] in languages:
            line = text[: match.start()].count("\n") + 1
            place = f"{name_of(page)}:{line}"
            after = FENCE.match(text[match.end() :].removeprefix("\n\n"))
            output = after[3] if after and after[1] == "text" else None
            found.append(Block(place, match[1], match[3], output))
    return found
