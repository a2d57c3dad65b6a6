"""The memory budget holds within its context, and nowhere else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from tests.messages import assert_in_form
from tn_extensions import memory_budget
from tn_extensions.compiler.budget import current_budget, slices

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


def test_holds_in_threads_without_a_budget_of_their_own() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(current_budget).result() == DEFAULT
        with memory_budget(2**20):
            assert pool.submit(current_budget).result() == 2**20
            with memory_budget(2**30):
                assert pool.submit(current_budget).result() == 2**30
            assert pool.submit(current_budget).result() == 2**20
        assert pool.submit(current_budget).result() == DEFAULT


def test_threads_keep_their_own_budgets() -> None:
    def use(limit: int) -> tuple[int, int]:
        with memory_budget(limit):
            barrier.wait()
            inside = current_budget()
            seen = third.submit(current_budget).result()
            barrier.wait()
        return inside, seen

    barrier = Barrier(2)
    with ThreadPoolExecutor(2) as pool, ThreadPoolExecutor(1) as third:
        found = list(pool.map(use, (2**20, 2**24)))
    # a thread with none keeps to the smallest
    assert found == [(2**20, 2**20), (2**24, 2**20)]
    assert current_budget() == DEFAULT


def test_an_own_budget_precedes_that_of_another_thread() -> None:
    def own() -> int:
        with memory_budget(2**24):
            return current_budget()

    with memory_budget(2**20), ThreadPoolExecutor(1) as pool:
        assert pool.submit(own).result() == 2**24
        assert current_budget() == 2**20


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


@pytest.mark.parametrize("each", [0, 1, 2**13, 2**40])
@pytest.mark.parametrize("total", [0, 1, 7])
def test_slices_of_a_batch(total: int, each: int) -> None:
    with memory_budget(2**20):
        found = list(slices(total, each))
    assert [n for part in found for n in range(total)[part]] == list(range(total))
    lengths = {part.stop - part.start for part in found}
    assert all(size == 1 or size * each <= 2**20 / 32 for size in lengths)
    assert each > 0 or len(found) == min(total, 1)
