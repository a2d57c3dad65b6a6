"""The examples in docstrings hold."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from importlib.util import find_spec
from pathlib import Path

import pytest

import tn_extensions


def has_examples(name: str) -> bool:
    """Look for examples in the source, since importing it may need an extra."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return ">>> " in Path(spec.origin).read_text("utf-8")


NAMES = [
    module.name
    for module in pkgutil.walk_packages(tn_extensions.__path__, "tn_extensions.")
    if has_examples(module.name)
]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", NAMES)
def test_examples(name: str) -> None:
    """Run the examples of one module, which see the names of that module."""
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


def test_there_are_examples() -> None:
    assert len(NAMES) >= 20
