"""Patterns select layers by their name, that of a layer around them, or their class."""

from __future__ import annotations

import pytest
from torch import nn

from tn_extensions.layer_names import matches


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
