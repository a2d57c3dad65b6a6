"""Measuring: the fastest is found, what fails or lags behind is given up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest
import torch

from tn_extensions.compiler.measure import measure

CPU = torch.device("cpu")


def sleeper(seconds: float, calls: list[float]) -> Callable[[], object]:
    def call() -> None:
        calls.append(seconds)
        time.sleep(seconds)

    return call


def test_the_fastest_is_found_and_the_slow_given_up() -> None:
    fast: list[float] = []
    slow: list[float] = []
    calls = {"fast": sleeper(2e-3, fast), "slow": sleeper(4e-2, slow)}
    times = measure(calls, CPU)
    assert min(times, key=times.__getitem__) == "fast"
    assert times["fast"] >= 2e-3 and times["slow"] >= 4e-2
    assert len(slow) == 2


def test_candidates_about_as_fast_alternate() -> None:
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        time.sleep(3e-3)

    times = measure({name: lambda n=name: call(n) for name in "ab"}, CPU)  # type: ignore[misc]
    assert set(times) == {"a", "b"}
    assert "ab" in "".join(order[4:]) or len(order) == 4


def test_short_calls_are_repeated() -> None:
    count = 0

    def call() -> None:
        nonlocal count
        count += 1

    measure({"one": call, "two": lambda: None}, CPU)
    assert count > 100


def test_what_raises_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise RuntimeError("no kernel")

    with caplog.at_level(logging.WARNING, "tn_extensions"):
        assert list(measure({"broken": broken, "fine": lambda: None}, CPU)) == ["fine"]
    assert "broken" in caplog.text and "no kernel" in caplog.text
    assert measure({"broken": broken}, CPU) == {}
