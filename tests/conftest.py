"""Settings of all tests: reproducible random numbers and one thread per process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.fake_cuda import FakeCuda, fake_cuda
from tn_extensions.compiler.plan import _registered, forget_plans, unregister
from tn_extensions.compiler.wisdom import _store_of

settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")

# what a user's machine has measured decides nothing here
os.environ["TN_EXTENSIONS_CACHE"] = os.path.join(tempfile.gettempdir(), "no-wisdom")

# pytest-xdist's processes share the cores
torch.set_num_threads(1)


# processes of tests start in milliseconds: they are forks of one that imported these
multiprocessing.set_forkserver_preload(
    [
        "experiments.contenders.quantities",
        "tests.optim.support",
        "torch.distributed.checkpoint",
        "torch.distributed.fsdp",
    ]
)


def leave_what_exists() -> None:
    """Spare garbage collections what stays, to look through which takes minutes."""
    gc.collect()
    gc.freeze()


leave_what_exists()


def pytest_collection_finish() -> None:
    """Spare the modules of all tests, too, which are imported now."""
    leave_what_exists()


@pytest.fixture(autouse=True, scope="module")
def emptied() -> Iterator[None]:
    """Forget a module's plans, lest caches fill with what no other module needs."""
    yield
    forget_plans()
    leave_what_exists()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed torch, so that a test does not depend on those before it."""
    torch.manual_seed(0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a test a cache folder of its own, and plans anew."""
    monkeypatch.setenv("TN_EXTENSIONS_CACHE", str(tmp_path))
    for forget in (_store_of.cache_clear, forget_plans):
        forget()
    yield tmp_path
    for forget in (_store_of.cache_clear, forget_plans):
        forget()


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
