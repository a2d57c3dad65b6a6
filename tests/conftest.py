"""What all tests share: reproducible random numbers and one thread a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.fake_cuda import FakeCuda, fake_cuda
from tn_extensions.compiler.cost import FITTED, RATES
from tn_extensions.compiler.plan import _registered, forget_plans, unregister

settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")

# pytest-xdist's processes share the cores
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed torch, so that a test does not depend on those before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def uncalibrated() -> Iterator[None]:
    """Let no test plan with what another one has measured."""
    yield
    if RATES != FITTED:
        RATES.clear()
        RATES.update(FITTED)
        forget_plans()


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    """Let no test plan with primitives that another one has added."""
    yield
    for primitive in [*_registered]:
        unregister(primitive)


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    """Offer a CUDA device that is not there."""
    with fake_cuda() as device:
        yield device
