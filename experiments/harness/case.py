"""Cases, and contests of several contenders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from experiments.harness.measure import (
    MIN_ROUNDS,
    MemoryNotMeasured,
    before,
    peak_memory,
    time_side_by_side,
)

Row = dict[str, Any]
"""One measurement: names of columns and values that JSON knows."""

Call = Callable[[], Any]
"""Computes something: tensors in lists, tuples and dictionaries.

If it has a method ``before``, that runs before each call, neither timed nor weighed.
"""

Build = Callable[..., Call]
"""Takes ``small``, whether to take a smaller input; makes inputs, returns a call.

Only the call is measured. It must be picklable if memory is measured: a ``partial`` of
a module's function.
"""


@dataclass(frozen=True)
class Options:
    """Options of a measurement.

    Args:
        device: Where to compute.
        rounds: Number of alternating rounds.
        memory: Whether to measure memory.
        quick: Whether to take few and small cases.
    """

    device: torch.device = torch.device("cpu")
    rounds: int = MIN_ROUNDS
    memory: bool = True
    quick: bool = False


class Case:
    """A measurement of several rows.

    Args:
        key: Columns that tell the case from others of its question.
        measure: Yields rows; they need not repeat the key.
    """

    def __init__(
        self, key: Mapping[str, Any], measure: Callable[[Options], Iterable[Row]]
    ) -> None:
        self.key, self.measure = dict(key), measure

    @property
    def title(self) -> str:
        """The key's values in a line."""
        return ", ".join(map(str, self.key.values()))


class Unsupported(Exception):
    """A contender does not define what is asked for; the message says why."""


def cpu_only(measure: Callable[..., Iterator[Row]]) -> Callable[..., Iterator[Row]]:
    """Refuse other devices than CPUs; the last argument is the options."""

    @wraps(measure)
    def guarded(*arguments: Any) -> Iterator[Row]:
        if arguments[-1].device.type != "cpu":
            raise Unsupported("measured on CPUs only")
        yield from measure(*arguments)

    return guarded


@dataclass(frozen=True)
class Contest:
    """Contenders that compute the same; its :meth:`rows` are a case's.

    Every result is compared with the reference first. A contender that fails or is
    wrong gets a row that says so, and is not timed.

    Args:
        contenders: How to build each contender's call, by its name.
        reference: Computes what is correct. Default: the first contender's result.
        baselines: Others, by name, which are timed and weighed, but not compared.
        read: Takes what to compare from a result. Default: all of it.
        tolerance: Largest relative error (Frobenius norm) of a tensor.
        setup: What to call before each timed call of a contender, untimed.
        notes: Further columns of a contender, made in the end.
        min_rounds: Fewer than five only for calls of minutes.
        timed: Whether to measure time.
        weighed: Whether to measure memory, if that is wanted.
    """

    contenders: Mapping[str, Build]
    reference: Call | None = None
    baselines: Mapping[str, Build] = field(default_factory=dict)
    read: Callable[[Any], Any] = lambda result: result
    tolerance: float = 1e-3
    setup: Mapping[str, Call] = field(default_factory=dict)
    notes: Callable[[str], Row] = lambda name: {}
    min_rounds: int = MIN_ROUNDS
    timed: bool = True
    weighed: bool = True

    def rows(self, options: Options) -> Iterator[Row]:
        """Check, time and weigh the contenders."""
        rows: dict[str, Row] = {}
        calls: dict[str, Call] = {}
        exact = None if self.reference is None else _tensors(self.reference())
        builds = {**self.contenders, **self.baselines}
        for name, build in builds.items():
            rows[name] = {"contender": name}
            try:
                call = build(small=False)
                before(call)
                result = call()
                if name in self.contenders:
                    found = _tensors(self.read(result))
                    exact = found if exact is None else exact
                    rows[name]["error"] = error = relative_error(found, exact)
                    if not error <= self.tolerance:
                        raise ArithmeticError(f"relative error {error:.1e}")
                calls[name] = call
            except Exception as reason:  # whatever stops a toolkit is a result
                rows[name]["reason"] = in_a_line(reason)
            result = None  # it may be large
        del exact
        able = list(calls)
        if self.timed:
            for name, seconds in self._times(calls, options).items():
                rows[name]["seconds"] = median(seconds)
                rows[name]["rounds"] = [float(f"{each:.4g}") for each in seconds]
        for name in able:
            rows[name] |= self.notes(name)
        calls.clear()
        for name in able if self.weighed and options.memory else ():
            prepare = _Prepare(builds[name])
            try:
                rows[name]["bytes"] = peak_memory(prepare, options.device)
            except MemoryNotMeasured as reason:
                rows[name]["reason"] = f"memory: {in_a_line(reason)}"
        yield from rows.values()

    def _times(
        self, calls: Mapping[str, Call], options: Options
    ) -> dict[str, list[float]]:
        first = {n: c.before for n, c in calls.items() if hasattr(c, "before")}
        return time_side_by_side(
            calls,
            options.rounds,
            options.device,
            setup={**first, **self.setup},
            min_rounds=self.min_rounds,
        )


@dataclass(frozen=True)
class _Prepare:
    """Builds a small call as a warm-up, and the call to weigh."""

    build: Build

    def __call__(self) -> tuple[Call, Call]:
        first, call = self.build(small=True), self.build(small=False)

        def warm_up() -> None:
            before(first)
            first()

        return warm_up, call


def relative_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Compute the largest relative error of a tensor, in the Frobenius norm."""
    if not found or len(found) != len(exact):
        raise ArithmeticError(f"{len(found)} tensors instead of {len(exact)}")
    worst = 0.0
    for ours, theirs in zip(found, exact, strict=True):
        if ours.numel() != theirs.numel():
            shapes = f"{list(ours.shape)} instead of {list(theirs.shape)}"
            raise ArithmeticError(f"shape {shapes}")
        theirs = theirs.to(torch.float64)
        difference = (ours.reshape(theirs.shape).to(theirs) - theirs).norm()
        if difference != 0:  # zero over zero is no error
            worst = max(worst, float(difference / theirs.norm()))
        if difference.isnan():
            return float("nan")
    return worst


def in_a_line(reason: Exception) -> str:
    """Name an error in a line; what was foreseen needs no class."""
    text = str(reason).partition("\n")[0][:200]
    foreseen = isinstance(reason, Unsupported | MemoryNotMeasured | ArithmeticError)
    return text if foreseen else f"{type(reason).__name__}: {text}"


def _tensors(result: Any) -> list[Tensor]:
    leaves = tree_leaves(result)
    return [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
