"""Measuring: the fastest is found, what fails or lags behind is given up."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from functools import partial

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


def test_times_are_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"steady": [1.0], "varying": [0.8, 1.05, 1.05]}
    counts = dict.fromkeys(seconds, 0)

    def time_call(call: Callable[[], str], repeats: int, device: torch.device) -> float:
        name = call()
        counts[name] += 1
        return seconds[name][counts[name] % len(seconds[name])]

    monkeypatch.setattr(sys.modules[measure.__module__], "_time", time_call)
    times = measure({name: partial(str, name) for name in seconds}, CPU)
    assert times == {"steady": 1.0, "varying": 1.05}


def test_devices_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    measure({"some": lambda: None}, CPU)
    assert not waited
    measure({"some": lambda: None}, torch.device("cuda"))
    assert {*waited} == {torch.device("cuda")}
