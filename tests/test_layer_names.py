"""Patterns select layers by their name, that of a layer around them, or their class."""

from __future__ import annotations

import pytest
from torch import nn

from tn_extensions.layer_names import matches, unmatched


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


def test_unmatched() -> None:
    layers = nn.Linear(2, 2), nn.Sequential(nn.Conv2d(1, 1, 1))
    found = [r"1\.\d", "0", "1", "Linear", "Sequential", "Conv2d", "1.0", ".*"]
    missing = ["nope", "linear", "1.", "2", "Conv"]
    assert unmatched([*found, *missing], nn.Sequential(*layers)) == missing
    assert unmatched([], nn.Linear(2, 2)) == []
