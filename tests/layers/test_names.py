"""Patterns select layers by their name, that of a layer around them, or their class."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from tests.messages import assert_in_form
from tn_extensions.layers.names import check_patterns, matches


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("blocks.0.conv", True),
        ("blocks.0", True),
        (r"blocks\.\d", True),
        ("Conv2d", True),
        ("conv", False),
        ("blocks.1", False),
        ("Conv", False),
    ],
)
def test_matches(pattern: str, expected: bool) -> None:
    assert matches(pattern, "blocks.0.conv", nn.Conv2d(1, 1, 1)) is expected


MODEL = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Conv2d(1, 1, 1)))


def test_patterns_that_match() -> None:
    found = [r"1\.\d", "0", "1", "Linear", "Sequential", "Conv2d", "1.0", ".*"]
    check_patterns("test", "skip", found, MODEL)
    check_patterns("test", "skip", (), nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("patterns", "kind"),
    [
        *(([name], ValueError) for name in ("nope", "linear", "1.", "2", "Conv", "(")),
        ("0", TypeError),
        ([0], TypeError),
    ],
)
def test_patterns_that_do_not(patterns: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind) as error:
        check_patterns("test", "skip", patterns, MODEL)
    assert_in_form(error.value, "test", "skip")
