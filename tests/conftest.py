"""What all tests share: reproducible random numbers and one thread a process."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")

# pytest-xdist's processes share the cores
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed torch, so that a test does not depend on those before it."""
    torch.manual_seed(0)
