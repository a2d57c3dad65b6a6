"""Measures the constants of the cost model on the machine at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from tn_extensions.compiler.cost import FITTED, RATES, Rates, rates
from tn_extensions.compiler.native import depthwise_convolution, weight_gradient
from tn_extensions.compiler.plan import forget_plans
from tn_extensions.compiler.product import multiply
from tn_extensions.errors import describe

_REFERENCE: dict[str, dict[str, float]] = {
    "cpu": {
        "gemm": 2.25e11,
        "narrow": 1.5e11,
        "batched": 6.5e10,
        "correlate": 2.3e11,
        "correlate_depthwise": 2.7e9,
        "depthwise": 8.5e9,
        "copy": 4.6e10,
        "cached_copy": 2.2e11,
        "scatter": 2.1e9,
        "call": 8e-7,
    }
}
"""What was measured where the constants of the cost model were fitted.

The fitted constants hold for whole plans, whose steps find the caches cold and are
called from Python; a single task in a loop is faster. How much faster one machine is
than another does carry over.
"""


def calibrate(device: str | torch.device = "cpu") -> Rates:
    """Measure a device's speeds, in float32, and plan with them from now on.

    Takes about a second. Plans are chosen anew, for all devices of this type and until
    the process ends; results do not change beyond rounding. Without calibration, plans
    are made with constants that were measured on an AMD EPYC with two threads.

    Args:
        device: A device of the type to calibrate.

    Returns:
        The new constants.

    Raises:
        TypeError: If ``device`` is of the wrong kind.
        ValueError: If there is no such device.
    """
    if not isinstance(device, str | torch.device):
        rule, kind = "be a str or a torch.device", type(device).__name__
        raise TypeError(describe("calibrate", "device", rule, kind))
    try:
        chosen = torch.device(device)
        torch.ones(1, device=chosen).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as reason:
        rule = "be a device of this machine"
        value = f"{str(device)!r} ({str(reason).partition(chr(10))[0]})"
        raise ValueError(describe("calibrate", "device", rule, value)) from None
    old = rates(chosen.type)
    with torch.no_grad(), torch.autocast(chosen.type, enabled=False):
        measured = _measure(chosen, old)
    reference = _REFERENCE.get(chosen.type, {})
    for name, speed in reference.items():
        measured[name] *= getattr(FITTED[chosen.type], name) / speed
    RATES[chosen.type] = replace(old, **measured)
    forget_plans()
    return RATES[chosen.type]


def _measure(device: torch.device, old: Rates) -> dict[str, float]:
    """Rates such that the model has the measured times of one task of each kind."""
    # hosts are slow on small tasks, accelerators would idle
    scale = 1 if device.type == "cpu" else 4

    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, dtype=torch.float32, device=device)

    def seconds(run: Callable[[], object]) -> float:
        return _seconds(run, device)

    one = ones(1)
    call = seconds(lambda: one + one)

    def rate(run: Callable[[], object], amount: float) -> float:
        return amount / max(seconds(run) - call, call / 10)

    side = 512 * scale
    square, thin = ones(side, side), ones(24, 4096)
    batch = ones(256 * scale, 9, 1024)
    images = ones(8 * scale, 30, 32, 64).permute(0, 3, 1, 2)
    inner = images[:, :, :28, 2:30]
    channels = ones(64 * scale, 28, 28)
    large, small = ones(2, 2**24), ones(2, 2**18)
    strided = ones(2**10, 2**10)
    one_each = ones(8, 64 * scale, 30, 32)
    return {
        "gemm": rate(lambda: multiply(square, square), side**3)
        / old.share(side, side, side),
        "narrow": rate(lambda: thin @ thin.mT, 24**2 * 4096) / old.share(24, 24, 4096),
        "batched": rate(lambda: batch @ batch.mT, batch.numel() * 9)
        / old.share(9, 9, 1024, batched=True),
        "correlate": rate(
            lambda: weight_gradient(images, inner, (3, 5), (1, 1), (1, 1), 1),
            15.0 * 64 * inner.numel(),
        ),
        "correlate_depthwise": rate(
            lambda: weight_gradient(
                one_each,
                one_each[:, :, :28, 2:30],
                (3, 5),
                (1, 1),
                (1, 1),
                one_each.shape[1],
            ),
            15.0 * 8 * one_each.shape[1] * 28**2,
        ),
        "depthwise": rate(
            lambda: depthwise_convolution(
                channels, channels[:, :26, :24], (1, 1), (1, 1)
            ),
            15.0 * len(channels) * 26 * 24,
        ),
        "copy": rate(lambda: large[0].copy_(large[1]), 4 * large.numel()),
        "cached_copy": rate(lambda: small[0].copy_(small[1]), 4 * small.numel()),
        # rows of a single element
        "scatter": rate(strided.mT.contiguous, strided.numel()),
        "call": call,
    }


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median time of a call, of at least a millisecond's calls at a time."""

    def time(count: int) -> float:
        _wait(device)
        start = perf_counter()
        for _ in range(count):
            run()
        _wait(device)
        return (perf_counter() - start) / count

    time(1)
    count = max(1, int(1e-3 / max(time(1), 1e-7)))
    return median(time(count) for _ in range(7))


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
