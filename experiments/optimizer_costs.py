"""What a step of training costs beyond SGD's: time and memory.

SGD, ours and the contender alternate in one process, each with a model of its own; ours
and the contender are compared before, and what differs has no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.measure import (
    Call,
    MemoryNotMeasured,
    medians,
    peak_memory,
    time_side_by_side,
)
from experiments.optimizer_contenders import Case, Kind, Side, Training

TOLERANCE = 1e-4
"""Of averaged factors, relative to each one's largest entry."""
GRADIENT_TOLERANCE = 1e-2
"""Of preconditioned gradients, whose error inverses multiply by condition numbers."""
INTERVALS = (1, 10)
"""Steps between updates of both factors and inverses, to average over."""
MEMORY_SLACK = 1.15
MEMORY_TIMEOUT_SECONDS = 1800.0
BOTH: tuple[Side, ...] = ("ours", "stock")


class Settings(NamedTuple):
    """How to measure.

    Args:
        rounds: Number of rounds of the timings.
        slow_rounds: Likewise of inverses, which take long.
        with_memory: Whether to measure memory.
    """

    rounds: int
    slow_rounds: int
    with_memory: bool


def overhead_parts(case: Case, settings: Settings) -> Iterator[dict[str, Any]]:
    """Measure a network's steps; parts of a record."""
    yield case.identity() | {"part": "overhead"}
    sides: dict[str, Training] = {
        side: Training.of(case, side) for side in ("sgd", *BOTH)
    }
    for training in sides.values():
        training.start(case.is_late)
    ours, stock = (sides[side] for side in BOTH)
    error = deviation(ours.averages(), stock.averages())
    gradient_error = deviation(ours.gradients(), stock.gradients())
    agrees = error <= TOLERANCE and gradient_error <= GRADIENT_TOLERANCE
    yield {"error": error, "gradient_error": gradient_error, "agrees": agrees}
    if not agrees:
        return
    # as when memory is measured, of two steps
    for side in BOTH:
        sides[side].step("inverses")
    averages = {side: sides[side].averages_bytes() for side in BOTH}
    inverses = {side: sides[side].inverses_bytes() for side in BOTH}
    yield {"averages_bytes": averages, "inverses_bytes": inverses}
    yield _timed(sides, settings)
    sides.clear()
    if settings.with_memory:
        try:
            yield _weighed(case, averages["ours"], inverses["ours"])
        except MemoryNotMeasured as reason:
            yield {"reason": f"memory: {reason}"}


def deviation(ours: Mapping[str, Tensor], stock: Mapping[str, Tensor]) -> float:
    """Largest difference, relative to each tensor's largest entry; nan if one is."""
    if set(ours) != set(stock):
        return float("inf")
    errors = [
        (own - stock[name]).abs().max() / stock[name].abs().max().clamp(min=1e-30)
        for name, own in ours.items()
    ]
    return float(torch.stack(errors).max())


# -- time


def _timed(sides: Mapping[str, Training], settings: Settings) -> dict[str, Any]:
    kinds: tuple[Kind, ...] = ("plain", "factors")
    calls: dict[str, Call] = {"sgd": partial(sides["sgd"].step, "plain")}
    for kind in kinds:
        calls |= {f"{s} {kind}": partial(sides[s].step, kind) for s in BOTH}
    times = time_side_by_side(calls, settings.rounds)
    slow = _time_inversions(sides, settings.slow_rounds)
    seconds = medians(times | slow)
    return {
        "rounds": settings.rounds,
        "slow_rounds": settings.slow_rounds,
        "seconds": seconds,
        "overheads": overheads(seconds),
        "factors_range": range_of_overheads(
            times["sgd"], times["ours factors"], times["stock factors"]
        ),
    }


def _time_inversions(
    sides: Mapping[str, Training], rounds: int
) -> dict[str, list[float]]:
    """Seconds of updates of all inverses; the first step has warmed up."""
    times: dict[str, list[float]] = {f"{side} invert": [] for side in BOTH}
    for _ in range(rounds):
        for side in BOTH:
            start = perf_counter()
            sides[side].invert()
            times[f"{side} invert"].append(perf_counter() - start)
    return times


def overheads(seconds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Seconds a step beyond SGD's of both sides, and the contender's over ours.

    Of steps that update nothing, of those that update factors, of the latter beyond
    the former, and averages over steps some of which update factors and inverses.
    """
    found: dict[str, dict[str, float]] = {}
    for side in BOTH:
        plain, factors = (
            seconds[f"{side} {kind}"] - seconds["sgd"] for kind in ("plain", "factors")
        )
        update = factors - plain + seconds[f"{side} invert"]
        own = {"plain": plain, "factors": factors, "update": factors - plain}
        own |= {f"every {n}": plain + update / n for n in INTERVALS}
        for name, value in own.items():
            found.setdefault(name, {})[side] = value
    for values in found.values():
        if values["ours"] > 0:
            values["ratio"] = values["stock"] / values["ours"]
    return found


def range_of_overheads(
    base: Sequence[float], ours: Sequence[float], stock: Sequence[float]
) -> list[float]:
    """Least and largest ratio of the rounds' times beyond a base's; none, if none is.

    Args:
        base: The rounds' times of what is no overhead.
        ours: Those of ours.
        stock: Those of the contender.
    """
    least = median(base)
    found = [
        (theirs - least) / (own - least)
        for own, theirs in zip(ours, stock, strict=True)
        if own > least
    ]
    return [min(found), max(found)] if found else []


# -- memory


def _weighed(case: Case, averages: int, inverses: int) -> dict[str, Any]:
    """Peaks of training from its start, parameters included.

    The bar allows SGD's peak and a share of it, and the averages; another share also
    allows for inverses.
    """
    parameters = sum(p.nbytes for p in case.subject.plain().parameters())
    sides: tuple[Side, ...] = ("sgd", "ours")
    peaks = {side: parameters + peak_of_training(case, side) for side in sides}
    allowed = MEMORY_SLACK * peaks["sgd"] + averages
    return {
        "parameters_bytes": parameters,
        "peak_bytes": peaks,
        "memory_share": peaks["ours"] / allowed,
        "share_with_inverses": peaks["ours"] / (allowed + inverses),
    }


def peak_of_training(case: Case, side: Side) -> int:
    """Peak memory of a model's first steps in a fresh process.

    Args:
        case: The network.
        side: What it is trained with.

    Returns:
        Bytes beyond the model: activations, gradients, momentum, averages, inverses.

    Raises:
        MemoryNotMeasured: If it could not be measured.
    """
    prepare = partial(_prepare_for_memory, case, side)
    return peak_memory(prepare, timeout=MEMORY_TIMEOUT_SECONDS)


def _prepare_for_memory(
    case: Case, side: Side
) -> tuple[Callable[[], object], Callable[[], Tensor]]:
    training = Training.of(case, side)

    def warm_up() -> None:
        # libraries load for a small network
        small = torch.nn.Sequential(
            torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 10)
        )
        batch = torch.ones(2, 3, 4, 4), torch.zeros(2).long()
        Training(small, batch, side, approx=case.approx).step("inverses")

    def run() -> Tensor:
        # the first step makes what stays, the second has it beside its own
        training.start(case.is_late)
        training.step("inverses")
        # what stays is no result: it counts
        return torch.empty(0)

    return warm_up, run
