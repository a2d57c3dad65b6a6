"""docs/plugs_support.md is what its generator makes; ours supports what it should."""

from __future__ import annotations

import re

import pytest

from tests import plugs_support
from tests.backpack import support_page
from tests.plugs_support import COLUMNS, PAGE, survey, tables

TEXT = PAGE.read_text("utf-8")
CELLS = support_page.read(TEXT)
UNSUPPORTED = ("subclass, same forward", "`output_size` by position")
"""Rows that need more of a toolkit than its registry."""


def test_page_begins_with_the_introduction() -> None:
    """Of whatever versions it was made with."""
    pattern = r"Opacus (\S+), captum (\S+) and kronfluence\n(\S+) .* torch (\S+)\. "
    versions = re.search(pattern, TEXT)
    assert versions
    names = ("opacus", "captum", "kronfluence", "torch")
    found = dict(zip(names, versions.groups(), strict=True))
    assert TEXT.startswith(plugs_support.introduction(**found))


def test_page_is_complete_and_ours_supports_everything() -> None:
    labels = {
        (table, support_page.label(row, list(variants)))
        for table, rows in tables().items()
        for row, variants in rows.items()
    }
    assert {*CELLS} == {(*label, name) for label in labels for name in COLUMNS}
    for (_, row, _), cell in CELLS.items():
        own = cell.split(" / ")[0]
        assert own == "yes" or (row in UNSUPPORTED and own.startswith("no ("))


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("Convolutions", "plain"),
        ("Convolutions", "depthwise"),
        ("Convolutions", "channels-last input"),
        ("Convolutions", "`padding='same'`, uneven sides"),
        ("Convolutions", "`padding_mode='circular'`"),
        ("Transposed convolutions", "groups"),
        ("Transposed convolutions", "`output_size` by keyword"),
        ("Transposed convolutions", "`output_size` by position"),
    ],
)
def test_page_is_what_is_generated(table: str, row: str) -> None:
    found = support_page.cells(survey({table: {row: tables()[table][row]}}))
    assert len(found) == len(COLUMNS)
    assert found == {at: CELLS[at] for at in found}
