"""How good are the planner's choices?

``python -m experiments.plans --help`` lists the options. Runs all candidates of a plan,
those that were rejected included, and compares the chosen one with the fastest. Writes
JSON, whose records hold what each candidate was estimated to take and what it took,
and, beside it, a Markdown report.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor

from experiments import machine, storage
from experiments.cases import PLANNED, Case
from experiments.markdown import number, table
from experiments.measure import medians, time_side_by_side
from experiments.records import measure_all
from tn_extensions.compiler import Plan

RESULTS = Path(__file__).parent / "results"
QUANTITIES = (
    "kfac_expand",
    "kfac_reduce",
    "per_sample_grad",
    "per_sample_grad_norm",
    "ggn_diagonal",
    "ggn_gram",
)
SLOWEST_ESTIMATE = 10.0
"""Times the chosen one's estimate from which on candidates are not run."""
SLOWEST = 2.5
"""Times the fastest one's time from which on candidates are run once only."""
TOLERANCE = 1e-2
"""Of candidates' values; they differ by rounding, by far less than this."""


def with_candidate(plan: Plan, candidate: Any) -> Plan:
    """Return the plan that would have chosen another candidate."""
    field = "candidate" if hasattr(plan, "candidate") else "lowering"
    return replace(plan, **{field: candidate})


def candidates(plan: Plan) -> list[Any]:
    """List the chosen candidate, then the others worth running, within the budget."""
    target = plan.target
    chosen = getattr(plan, "candidate", None) or plan.lowering
    worth = SLOWEST_ESTIMATE * chosen.cost.seconds
    others = (
        other
        for other in plan.rejected
        if other.cost.seconds <= worth
        and other.cost.peak * target.itemsize <= target.budget
    )
    return [chosen, *others]


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Run the candidates of a case alternating; a record for the JSON file."""
    plan = case.plan()
    found = candidates(plan)
    names = {"weight": "weight", "S": "g"}
    tensors = {names.get(name, name): t for name, t in case.tensors().items()}
    runs = [partial(with_candidate(plan, one).run, tensors) for one in found]
    expected = runs[0]()
    scale = expected.abs().max()
    once = []
    for run, candidate in zip(runs, found, strict=True):
        error = (run() - expected).abs().max() / scale
        if not error <= TOLERANCE:
            raise RuntimeError(f"{candidate} differs by {error:.1e}")
        start = time.perf_counter()
        run()
        once.append(time.perf_counter() - start)
    fast = [i for i, seconds in enumerate(once) if seconds <= SLOWEST * min(once)]
    fast = sorted({0, *fast})
    times = time_side_by_side({str(i): runs[i] for i in fast}, rounds)
    seconds = medians(times)
    measured = [seconds.get(str(i), once[i]) for i in range(len(found))]
    best = min(range(len(found)), key=lambda i: measured[i])
    return {
        "layer": case.layer,
        "quantity": case.quantity,
        "chosen": _name(found[0]),
        "best": _name(found[best]),
        "ratio": measured[0] / measured[best],
        "candidates": [
            {
                "name": _name(candidate),
                "steps": list(map(str, _operations(candidate))),
                "cost": asdict(candidate.cost),
                "estimated_seconds": candidate.cost.seconds,
                "measured_seconds": measured[i],
                "alternating": i in fast,
            }
            for i, candidate in enumerate(found)
        ],
    }


def _name(candidate: Any) -> str:
    return getattr(candidate, "name", None) or candidate.primitive


def _operations(candidate: Any) -> Sequence[Any]:
    return getattr(candidate, "operations", None) or getattr(candidate, "steps", ())
