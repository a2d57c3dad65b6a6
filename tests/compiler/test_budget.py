"""The memory budget holds within its context, and nowhere else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.messages import assert_in_form
from tn_extensions import memory_budget
from tn_extensions.compiler.budget import current_budget

DEFAULT = 256 * 2**20


def test_default() -> None:
    assert current_budget() == DEFAULT


def test_contexts_nest() -> None:
    with memory_budget(2**20):
        assert current_budget() == 2**20
        with memory_budget(2**30):
            assert current_budget() == 2**30
        assert current_budget() == 2**20
    assert current_budget() == DEFAULT


def test_restored_after_an_exception() -> None:
    with pytest.raises(KeyError), memory_budget(1):
        raise KeyError
    assert current_budget() == DEFAULT


def test_other_threads_are_not_affected() -> None:
    with memory_budget(1), ThreadPoolExecutor(1) as pool:
        assert pool.submit(current_budget).result() == DEFAULT


@pytest.mark.parametrize(
    ("limit", "error"),
    [(0, ValueError), (-1, ValueError), (1e6, TypeError), ("1", TypeError)]
    + [(True, TypeError), (None, TypeError)],
)
def test_refused_limits(limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught, memory_budget(limit):
        pass
    assert_in_form(caught.value, "memory_budget", "limit")
    assert current_budget() == DEFAULT
