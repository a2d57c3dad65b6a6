"""Measuring candidates side by side."""

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
"""Seconds below which a call is repeated, so that the clock resolves it."""

_ROUNDS = 9

_PATIENCE = 40
"""Calls of the fastest, of a tenth of a second at least, whose time all rounds get."""

_BEHIND = (3.0, 1.5, 1.2, 1.2, 1.1)
"""Times that a candidate may take of the fastest one after the first, second, ... round
to stay in."""


MEASURING = RLock()
"""Held while something is measured: one at a time, or they would slow each other."""


def can_measure(like: Tensor) -> bool:
    """Tell whether what is done with a tensor takes its time, and may be measured."""
    is_done = holds_data(like) and not is_capturing(like)
    return is_done and not torch.are_deterministic_algorithms_enabled()


def measure(
    calls: Mapping[str, Callable[[], object]], device: torch.device
) -> dict[str, float]:
    """Time calls, alternating, and give up those that are clearly behind.

    Each is called once to warm up. One that raises is given up, too, with a line in the
    log.

    Args:
        calls: By name, what to time.
        device: Where they run.

    Returns:
        The median of the seconds of a call, of each that did not raise. The least would
        favour calls whose time varies, as that of fresh memory does.
    """
    left = dict(calls)
    times: dict[str, list[float]] = {}
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        try:
            _time(call, 1, device)
            seconds = _time(call, 1, device)
        except Exception as reason:  # whatever it is, others may do
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
    """Wait until a device has done what it was told to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
