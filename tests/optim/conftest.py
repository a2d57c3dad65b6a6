"""Settings of the tests of optimizers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.optim.support import decomposed_in_place


@pytest.fixture(autouse=True)
def in_place() -> Iterator[None]:
    """Treat some of the small networks' factors as large ones are."""
    with decomposed_in_place():
        yield
