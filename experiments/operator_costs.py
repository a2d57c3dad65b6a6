"""What operators cost, ours against stock's: to build, to multiply, to invert.

Ours and stock alternate in one process, and what they computed in the timed rounds is
compared; what differs has no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from experiments.measure import (
    MIN_ROUNDS,
    Call,
    MemoryNotMeasured,
    medians,
    memory_share,
    ratios,
    time_side_by_side,
)
from experiments.operators import (
    Case,
    Side,
    deviation,
    kept_bytes,
    peak_of_build,
    trace_deviation,
    vector_like,
)

TOLERANCE = 1e-4
"""Of a product in float32, relative to each tensor's largest entry; of a trace."""
LOOSE_TOLERANCE = 1e-1
"""Likewise of EKFAC's products, as eigenvectors of close eigenvalues are arbitrary, and
of inverses, which multiply rounding by the condition number. On ResNet-18, rounding
images differently moves stock's EKFAC by 0.01, its inverse by 0.02. Traces are sharp.
"""
DAMPING = 1e-2
INVERSES: dict[str, dict[str, Any]] = {
    "inverse": {"damping": DAMPING},
    "exact inverse": {"damping": DAMPING, "use_exact_damping": True},
}
BOTH: tuple[Side, ...] = ("ours", "stock")


class Settings(NamedTuple):
    """How to measure.

    Args:
        rounds: Number of rounds of the timings.
        slow_rounds: Likewise where stock decomposes factors, which takes long.
        with_memory: Whether to measure memory.
    """

    rounds: int
    slow_rounds: int
    with_memory: bool

    def time(
        self,
        calls: Mapping[str, Call],
        is_slow: bool = False,
        setup: Mapping[str, Call] | None = None,
    ) -> dict[str, list[float]]:
        """Seconds of each round, by side."""
        rounds = self.slow_rounds if is_slow else self.rounds
        least = 1 if is_slow else MIN_ROUNDS
        return time_side_by_side(calls, rounds, setup=setup, min_rounds=least)


def operator_parts(case: Case, settings: Settings) -> Iterator[dict[str, Any]]:
    """Measure an operator; parts of a record."""
    yield case.identity() | {"part": "operator"}
    model = case.subject.plain()
    parameters, every = (case.parameters(model, side) for side in ("ours", "all"))
    yield {
        "num_parameters": {
            "both": sum(p.numel() for p in parameters),
            "ours": sum(p.numel() for p in every),
            "network": sum(p.numel() for p in model.parameters()),
        }
    }
    sides: list[Side] = [*BOTH, "plain"]
    if len(every) > len(parameters):
        sides.append("all")
    built, times = _built(case, sides, settings)
    vector = vector_like(parameters)
    products = [built[side] @ vector for side in BOTH]
    error = deviation(*products)
    trace_error = trace_deviation(built["ours"], built["stock"])
    limit = LOOSE_TOLERANCE if case.is_corrected else TOLERANCE
    agrees = error <= limit and trace_error <= TOLERANCE
    yield {"error": error, "trace_error": trace_error, "agrees": agrees}
    if not agrees:
        return
    yield _compared(times)
    # other types of Fisher change neither products nor what is held
    if case.fisher_type != "empirical":
        return
    kept = {side: kept_bytes(built[side]) for side in BOTH}
    found: dict[str, Any] = {}
    for name, part in _products(case, built, settings):
        found[name] = part
        yield {"products": found}
    built.clear()
    if settings.with_memory:
        try:
            yield _weigh(case, kept)
        except MemoryNotMeasured as reason:
            yield {"reason": f"memory: {reason}"}


def _built(
    case: Case, sides: list[Side], settings: Settings
) -> tuple[dict[Side, Any], dict[str, list[float]]]:
    """The last operators, and the seconds that each one took."""
    model, batch = case.subject.plain(), case.subject.batch(case.batch_size)
    built: dict[Side, Any] = {}

    def build(side: Side) -> None:
        built[side] = case.run(side, model, batch)

    calls: dict[str, Call] = {side: partial(build, side) for side in sides}
    # two operators of a side would take twice the memory
    forget: dict[str, Call] = {side: partial(built.pop, side, None) for side in sides}
    times = settings.time(calls, case.is_corrected, setup=forget)
    return {side: built[side] for side in BOTH}, times


def _products(
    case: Case, built: dict[Side, Any], settings: Settings
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Products with operators and, at first and again, with their inverses."""
    vector = vector_like(case.parameters(case.subject.plain(), "ours"))
    operators = dict(built)

    def multiply(side: Side) -> Any:
        return operators[side] @ vector

    tolerance = LOOSE_TOLERANCE if case.is_corrected else TOLERANCE
    yield "matvec", _measure_products(multiply, tolerance, settings)
    for name, options in INVERSES.items():
        is_exact = "use_exact_damping" in options
        if case.is_corrected and not is_exact:
            continue  # curvlinops has none

        def invert(side: Side, options: dict[str, Any] = options) -> Any:
            operators[side] = case.invert(side, built[side], options)
            return multiply(side)

        is_slow = is_exact and not case.is_corrected
        first = _measure_products(invert, LOOSE_TOLERANCE, settings, is_slow)
        yield f"{name}, first", first
        yield f"{name}, again", _measure_products(multiply, LOOSE_TOLERANCE, settings)


def _measure_products(
    multiply: Any, tolerance: float, settings: Settings, is_slow: bool = False
) -> dict[str, Any]:
    products: dict[Side, Any] = {}

    def keep(side: Side) -> None:
        products[side] = multiply(side)

    times = settings.time({side: partial(keep, side) for side in BOTH}, is_slow)
    error = deviation(products["ours"], products["stock"])
    agrees = error <= tolerance
    return {"error": error, "agrees": agrees} | (_compared(times) if agrees else {})


def _compared(times: Mapping[str, list[float]]) -> dict[str, Any]:
    seconds = medians(times)
    found = ratios(times["stock"], times["ours"])
    return {
        "rounds": len(found),
        "seconds": seconds,
        "ratio": seconds["stock"] / seconds["ours"],
        "ratio_range": [min(found), max(found)],
    }


def _weigh(case: Case, kept: dict[Side, int]) -> dict[str, Any]:
    """Peak memory beyond that of a forward and a backward pass."""
    peaks = {side: peak_of_build(case, side) for side in (*BOTH, "plain")}
    beyond = {side: max(0, peaks[side] - peaks["plain"]) for side in BOTH}
    passing = {side: max(0, beyond[side] - kept[side]) for side in BOTH}
    return {
        "peak_bytes": peaks,
        "kept_bytes": kept,
        "memory_bytes": beyond,
        "memory_share": memory_share(beyond["ours"], beyond["stock"]),
        "passing_share": memory_share(passing["ours"], passing["stock"]),
    }
