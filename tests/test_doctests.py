"""The examples in docstrings hold."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import tn_extensions

CORE = ("conv", "diagram", "errors", "functional", "quantities", "network")
CORE += ("compiler", "model", "sampling")
NAMES = [
    module.name
    for module in pkgutil.walk_packages(tn_extensions.__path__, "tn_extensions.")
    if module.name.split(".")[1] in CORE
]


def run(name: str) -> doctest.TestResults:
    """Run the examples of one module, which see the names of that module."""
    module = importlib.import_module(name)
    return doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)


@pytest.mark.parametrize("name", NAMES)
def test_examples(name: str) -> None:
    assert run(name).failed == 0


def test_there_are_examples() -> None:
    assert sum(run(name).attempted for name in NAMES) >= 8
