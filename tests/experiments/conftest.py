"""Settings of all tests of the experiments."""

from __future__ import annotations

import pytest

from experiments.harness.measure import preload


@pytest.fixture(scope="session", autouse=True)
def preloaded_server() -> None:
    """Let memory measurements start fast, whichever test makes the first one."""
    preload("experiments.contenders.quantities")
