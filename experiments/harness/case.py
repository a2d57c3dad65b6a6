"""Cases, and contests of several contenders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from experiments.harness.measure import (
    MIN_ROUNDS,
    Build,
    Call,
    MemoryNotMeasured,
    before,
    peak_memory,
    time_side_by_side,
)

Row = dict[str, Any]
"""One measurement: names of columns and values that JSON knows."""


@dataclass(frozen=True)
class Options:
    """Options of a measurement; a quick one takes few and small cases."""

    device: torch.device = torch.device("cpu")
    rounds: int = MIN_ROUNDS
    memory: bool = True
    quick: bool = False


class Case:
    """A measurement of several rows.

    Args:
        key: Columns that tell the case from others of its question.
        measure: Yields rows; they need not repeat the key.
        arguments: What ``measure`` takes; the options come last.
        cpu_only: Whether to refuse other devices.
    """

    def __init__(
        self,
        key: Mapping[str, Any],
        measure: Callable[..., Iterable[Row]],
        *arguments: Any,
        cpu_only: bool = False,
    ) -> None:
        self.key, self.cpu_only = dict(key), cpu_only
        self._measure = partial(measure, *arguments)

    @property
    def title(self) -> str:
        """The key's values in a line."""
        return ", ".join(map(str, self.key.values()))

    def measure(self, options: Options) -> Iterator[Row]:
        """Measure; yield rows."""
        if self.cpu_only and options.device.type != "cpu":
            raise Unsupported("measured on CPUs only")
        yield from self._measure(options)


class Unsupported(Exception):
    """A contender does not define what is asked for; the message says why."""


def relative_error(found: Any, exact: Any) -> float:
    """Compute the largest relative error of a tensor, in the Frobenius norm.

    Both are tensors in lists, tuples and dictionaries, and as many.
    """
    found, exact = _tensors(found), _tensors(exact)
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


def _tensors(result: Any) -> list[Tensor]:
    leaves = tree_leaves(result)
    return [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]


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
        compare: Computes the error of what was read.
        tolerance: Largest error.
        notes: Further columns of a contender, made in the end.
        rounds: Fewer than the options' only for calls of minutes.
        timed: Whether to measure time.
        weighed: Whether to measure memory, if that is wanted.
    """

    contenders: Mapping[str, Build]
    reference: Call | None = None
    baselines: Mapping[str, Build] = field(default_factory=dict)
    read: Callable[[Any], Any] = lambda result: result
    compare: Callable[[Any, Any], float] = relative_error
    tolerance: float = 1e-3
    notes: Callable[[str], Row] = lambda name: {}
    rounds: int | None = None
    timed: bool = True
    weighed: bool = True

    def rows(self, options: Options) -> Iterator[Row]:
        """Check, time and weigh the contenders."""
        rows: dict[str, Row] = {}
        calls: dict[str, Call] = {}
        exact = None if self.reference is None else self.reference()
        builds = {**self.contenders, **self.baselines}
        for name, build in builds.items():
            rows[name] = {"contender": name}
            try:
                call = build(small=False)
                before(call)
                result = call()
                if name in self.contenders:
                    found = self.read(result)
                    exact = found if exact is None else exact
                    rows[name]["error"] = error = self.compare(found, exact)
                    if not error <= self.tolerance:
                        raise ArithmeticError(f"relative error {error:.1e}")
                calls[name] = call
            except Exception as reason:  # whatever stops a toolkit is a result
                rows[name]["reason"] = in_a_line(reason)
            result = found = None  # they may be large
        del exact
        able = list(calls)
        if self.timed:
            rounds = options.rounds if self.rounds is None else self.rounds
            times = time_side_by_side(calls, rounds, options.device)
            for name, seconds in times.items():
                rows[name]["seconds"] = median(seconds)
                rows[name]["rounds"] = [float(f"{each:.4g}") for each in seconds]
        for name in able:
            rows[name] |= self.notes(name)
        calls.clear()
        for name in able if self.weighed and options.memory else ():
            try:
                rows[name]["bytes"] = peak_memory(builds[name], options.device)
            except MemoryNotMeasured as reason:
                rows[name]["reason"] = f"memory: {in_a_line(reason)}"
        yield from rows.values()


def in_a_line(reason: Exception) -> str:
    """Name an error in a line; what was foreseen needs no class."""
    text = str(reason).partition("\n")[0][:200]
    foreseen = isinstance(reason, Unsupported | MemoryNotMeasured | ArithmeticError)
    return text if foreseen else f"{type(reason).__name__}: {text}"
