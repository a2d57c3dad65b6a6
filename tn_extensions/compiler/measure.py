"""Measurements of candidates, side by side."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from math import ceil
from statistics import median
from threading import RLock
from time import perf_counter

import torch
from torch import Tensor

from tn_extensions.compiler.tracing import holds_data, is_capturing

LOG = logging.getLogger("tn_extensions")

_SHORTEST = 5e-4
"""Seconds below which a call is repeated, so that the clock can resolve it."""

_ROUNDS = 9

_PATIENCE = 40
"""Time limit of all rounds, in calls of the fastest candidate (of at least 0.1 s)."""

_BEHIND = (3.0, 1.5, 1.2, 1.2, 1.1)
"""Limits after the first, second, ... round: candidates are dropped if their time
exceeds the fastest one's by a larger factor."""


MEASURING = RLock()
"""Held during a measurement: two at a time would slow each other down."""


def can_measure(like: Tensor) -> bool:
    """Tell whether operations on a tensor really run now, and may be measured."""
    is_done = holds_data(like) and not is_capturing(like)
    return is_done and not torch.are_deterministic_algorithms_enabled()


def measure(
    calls: Mapping[str, Callable[[], object]], device: torch.device
) -> dict[str, float]:
    """Time calls in turn, and drop those that are clearly slower than the fastest.

    Each is called once to warm up. A call that raises is dropped with a warning in the
    log.

    Args:
        calls: The calls, by name.
        device: The device on which they run.

    Returns:
        The median seconds of each call that did not raise. The minimum would favour
        calls whose time varies, for example because they use fresh memory.
    """
    left = dict(calls)
    times: dict[str, list[float]] = {}
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        try:
            _time(call, 1, device)
            seconds = _time(call, 1, device)
        except Exception as reason:  # other candidates may work
            LOG.warning("Candidate %s is left out: %s", name, reason)
            del left[name]
            continue
        times[name] = [seconds]
        repeats[name] = max(1, ceil(_SHORTEST / max(seconds, 1e-7)))
    start = perf_counter()
    for number in range(_ROUNDS):
        typical = {name: median(own) for name, own in times.items()}
        best = min(typical.values(), default=0.0)
        if number > 1 and perf_counter() - start > _PATIENCE * max(best, 0.1):
            break
        limit = _BEHIND[min(number, len(_BEHIND) - 1)] * best
        left = {name: call for name, call in left.items() if typical[name] <= limit}
        if len(left) < 2:
            break
        for name, call in left.items():
            times[name].append(_time(call, repeats[name], device))
    return {name: median(own) for name, own in times.items()}


def _time(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    wait(device)
    start = perf_counter()
    for _ in range(repeats):
        call()
    wait(device)
    return (perf_counter() - start) / repeats


def wait(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
