"""How near are plans to what the machine can do?

A plan states its multiply-adds and the bytes that it moves. Divided by this machine's
rates, of a large matrix product and of a copy that no cache holds, they take at least
the longer of both times: the limit of the plan, not of the quantity. The *share* of the
limit is that time over the measured one. It can exceed one: data may stay in a cache,
and torch's native convolutions compute faster than its matrix products. *lost_ms* is
what is left to gain.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import pandas as pd
import torch

from experiments.contenders.quantities import SMALL, Asked, contest
from experiments.harness.case import Case, Options, Row
from experiments.harness.measure import medians, time_side_by_side
from experiments.harness.question import Question
from experiments.subjects.layers import NETWORKS, layers_of
from tn_extensions import planning

QUANTITIES = ("kfac_expand", "kfac_reduce", "per_sample_grad", "ggn_diagonal")
_SIDE = 2048
"""Of square matrices whose product is timed."""
_COPIED_BYTES = 2**28
"""Beyond all caches."""


@lru_cache
def rates(device: torch.device, rounds: int) -> tuple[float, float]:
    """Measure multiply-adds a second of a matrix product, and bytes of a copy."""
    a = torch.ones(_SIDE, _SIDE, device=device)
    source = torch.ones(_COPIED_BYTES // 4, device=device)
    target, product = torch.empty_like(source), torch.empty_like(a)
    calls = {
        "product": lambda: torch.mm(a, a, out=product),
        "copy": lambda: target.copy_(source),
    }
    seconds = medians(time_side_by_side(calls, rounds, device))
    return _SIDE**3 / seconds["product"], 2 * _COPIED_BYTES / seconds["copy"]


def cases(options: Options) -> Iterator[Case]:
    """List quantities of the nine networks' layers."""
    layers = [layer for name in NETWORKS for layer in layers_of(name)]
    for quantity in QUANTITIES:
        for layer in (SMALL,) if options.quick else layers:
            asked = Asked(quantity, layer, 2 if options.quick else 8)
            yield Case(asked.key | {"category": layer.category}, _rows, asked)


@torch.no_grad()
def _rows(asked: Asked, options: Options) -> Iterator[Row]:
    multiply_adds, moved = rates(options.device, options.rounds)
    own = contest(asked, options.device, ("ours, measured",), weighed=False)
    (row,) = own.rows(options)
    with planning("measure"):
        plan = asked.plan(options.device)
    if "reason" in row:
        yield row
        return
    by = {
        "arithmetic": plan.cost.flops / multiply_adds,
        "memory": plan.cost.bytes / moved,
    }
    bound = max(by, key=by.__getitem__)
    yield row | {
        "plan": plan.candidate.name,
        "multiply_adds": plan.cost.flops,
        "moved_bytes": plan.cost.bytes,
        "multiply_adds_per_second": multiply_adds,
        "copied_bytes_per_second": moved,
        "bound": bound,
        "limit_seconds": by[bound],
        "share": by[bound] / row["seconds"],
    }


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Show shares by category, the layers that lose most, and the rates."""
    worth = rows.assign(lost_ms=(rows["seconds"] - rows["limit_seconds"]) * 1e3)
    columns = ["quantity", "network", "layer", "plan", "bound", "share", "lost_ms"]
    grouped = rows.groupby(["quantity", "category", "bound"])["share"]
    names = ["multiply_adds_per_second", "copied_bytes_per_second"]
    lost = worth[columns].sort_values("lost_ms", ascending=False)
    worst = lost.groupby("quantity").head(10).set_index("quantity")
    return {
        "Rates of the machine": rows[names].drop_duplicates(),
        "Share of the limit": grouped.agg(["median", "min", "count"]),
        "Layers that lose most": worst.sort_index(kind="stable"),
    }


QUESTION = Question(__doc__, cases, tables)
