"""Timing alternates, and peak memory is what the call allocates."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from experiments.harness import measure
from experiments.harness.measure import (
    MemoryNotMeasured,
    Prepared,
    medians,
    peak_memory,
    time_side_by_side,
)

MIB = 2**20
linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc"
)


class _Clock:
    """A clock that only the timed calls advance."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def call(self, name: str, *durations: float) -> Callable[[], None]:
        """Make a call that takes the given times in turn, the last one for ever."""
        left = list(durations)

        def run() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_rounds_alternate_after_a_warm_up() -> None:
    clock = _Clock()
    calls = {name: clock.call(name, 1.0) for name in "abc"}
    times = time_side_by_side(calls, rounds=5, clock=lambda: clock.now)
    assert "".join(clock.calls) == "abc" + "abcbcacababcbca"
    assert times == {name: [pytest.approx(1.0)] * 5 for name in "abc"}


def test_warm_up_is_not_counted_and_median_is_robust() -> None:
    clock = _Clock()
    call = clock.call("slow first", 100.0, 1.0, 1.0, 50.0, 3.0, 2.0)
    times = time_side_by_side({"slow first": call}, 5, clock=lambda: clock.now)
    assert times["slow first"] == pytest.approx([1.0, 1.0, 50.0, 3.0, 2.0])
    assert medians(times) == {"slow first": pytest.approx(2.0)}


def test_short_calls_are_repeated() -> None:
    clock = _Clock()
    times = time_side_by_side(
        {"short": clock.call("short", 1e-4)},
        5,
        min_seconds=1e-3,
        clock=lambda: clock.now,
    )
    assert times["short"] == pytest.approx([1e-4] * 5)
    assert len(clock.calls) >= 2 + 5 * 10


def test_calls_are_prepared_untimed() -> None:
    clock = _Clock()
    times = time_side_by_side(
        {
            "short": Prepared(clock.call("set up", 100.0), clock.call("short", 1e-4)),
            "bare": clock.call("bare", 1.0),
        },
        rounds=5,
        min_seconds=1e-3,
        clock=lambda: clock.now,
    )
    assert times["short"] == pytest.approx([1e-4] * 5)
    assert times["bare"] == pytest.approx([1.0] * 5)
    calls = clock.calls
    assert calls.count("short") == calls.count("set up") >= 2 + 5 * 10
    before = [calls[i - 1] for i, name in enumerate(calls) if name == "short"]
    assert set(before) == {"set up"}


def test_garbage_collector_rests_and_returns() -> None:
    states: list[bool] = []

    def fail_late() -> None:
        states.append(gc.isenabled())
        if len(states) == 8:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        time_side_by_side({"fails": fail_late}, rounds=9, min_seconds=0)
    assert gc.isenabled()
    assert not any(states[2:])


def _build_temporary(temporary: int, result: int, small: bool) -> Callable[[], Tensor]:
    def call() -> Tensor:
        extra = torch.ones(1000 if small else temporary)
        # both are alive at once, else the result would hide what is freed before
        return torch.ones(result).mul_(extra.sum())

    return call


@linux_only
@pytest.mark.parametrize("mib", [0, 1, 64])
def test_peak_is_what_the_call_allocates_beyond_its_result(mib: int) -> None:
    build = partial(_build_temporary, mib * MIB // 4, 16 * MIB // 4)
    assert peak_memory(build) / MIB == pytest.approx(mib, abs=0.6)


@linux_only
def test_every_measurement_has_a_process_of_its_own() -> None:
    large = partial(_build_temporary, 64 * MIB // 4, 1)
    small = partial(_build_temporary, 2 * MIB // 4, 1)
    peaks = [peak_memory(build) / MIB for build in (large, small, large)]
    assert peaks == pytest.approx([64, 2, 64], abs=0.6)


def _build_parallel(small: bool) -> Callable[[], Tensor]:
    x = torch.ones(1024, 1024)
    return lambda: x @ x + x


@linux_only
def test_children_can_run_parallel_regions() -> None:
    # a fork after the first parallel region would hang here
    assert peak_memory(_build_parallel, threads=2) / MIB == pytest.approx(4, abs=3)


def _fail(small: bool) -> Callable[[], Tensor]:
    raise ValueError("no such input")


def _die(small: bool) -> Callable[[], Tensor]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@linux_only
@pytest.mark.parametrize(
    ("build", "reason"), [(_fail, "ValueError: no such input"), (_die, "was killed")]
)
def test_failures_are_reported(
    build: Callable[[bool], Callable[[], Tensor]], reason: str
) -> None:
    with pytest.raises(MemoryNotMeasured, match=reason):
        peak_memory(build)


def test_bytes_count_once_and_not_what_a_view_hides() -> None:
    x = torch.ones(10, 10)
    assert measure.num_bytes({"a": x, "b": [x, None]}) == 400
    assert measure.num_bytes([x[0], (torch.ones(3),)]) == 40 + 12
    assert measure.num_bytes(torch.ones(1).expand(100)) == 4
