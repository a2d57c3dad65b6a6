"""How fast are quantities of a convolution, over the paper's nine networks?

The paper's tables and box plots, on this machine. *Stock* is torch's own kernel for the
forward pass and the vector-Jacobian products, and unfolding for the Kronecker factors.
*einconv* is the paper's network contracted along opt_einsum's path, *einconv
simplified* after the paper's rewrites, both prepared beforehand. *Ours* takes plans by
estimate, or by measuring candidates. Ratios above one: ours is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from experiments.contenders.quantities import Asked, contest
from experiments.harness.case import Case, Options, Row
from experiments.harness.question import Question
from experiments.harness.ratios import Ratio, side_by_side
from experiments.subjects.layers import NETWORKS, layers_of

# factors first: they are what others unfold for
QUANTITIES = {
    "kfac_reduce": "kfac_reduce",
    "kfac_expand": "kfac_expand",
    "weight_vjp": "weight_vjp",
    "input_vjp": "input_vjp",
    "forward": "conv",
}
"""The paper's names, and our functions'."""
CASE = ["quantity", "network", "layer", "category", "count"]
OURS = "ours, measured"


def cases(options: Options) -> Iterator[Case]:
    """List all quantities of all layers."""
    for name in QUANTITIES:
        yield from layer_cases(name, _rows, options)


def layer_cases(
    name: str, rows: Callable[[Asked, Options], Iterator[Row]], options: Options
) -> Iterator[Case]:
    """List a quantity of all layers; of a quick look, those of a small network."""
    for network in ("3c3d",) if options.quick else NETWORKS:
        for layer in layers_of(network):
            size = 2 if options.quick else 8
            key = {
                "quantity": name,
                "network": network,
                "layer": layer.name,
                "category": layer.category,
                "count": layer.occurrences,
                "batch_size": size,
            }
            yield Case(key, rows, Asked(QUANTITIES[name], layer, size))


def _rows(asked: Asked, options: Options) -> Iterator[Row]:
    yield from contest(asked, options.device, weighed=False).rows(options)


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tabulate medians, best and worst, by category, against each contender."""
    found = {}
    for theirs in ("stock", "einconv", "einconv simplified", "curvlinops", "ours"):
        ratios = Ratio(CASE, theirs, OURS).of(rows).sort_index().reset_index()
        if not len(ratios):
            continue
        parts = [
            part.groupby(["quantity", "category"])["ratio"].agg(
                median="median", best="max", worst="min", layers="count"
            )
            for part in (ratios, ratios.assign(category="all"))
        ]
        table = pd.concat(parts).sort_index(level=0, sort_remaining=False)
        found[f"Time of {theirs} over {OURS}"] = table
    ratios = Ratio(CASE, "stock", OURS).of(rows).sort_index().reset_index()
    worst = ratios.nsmallest(15, "ratio").drop(columns="count").set_index("quantity")
    found["The layers where stock comes closest, or wins"] = worst
    return found


def figures(rows: pd.DataFrame) -> Mapping[str, Any]:
    """Draw box plots of the ratios, by category, as in the paper's appendix."""
    present = [q for q in reversed(QUANTITIES) if q in set(rows["quantity"])]
    figure, axes = plt.subplots(
        1, len(present), figsize=(3.2 * len(present), 3.4), sharey=True, squeeze=False
    )
    names = ("stock", "einconv", "einconv simplified", "ours", OURS)
    for axis, quantity in zip(axes[0], present, strict=True):
        of_quantity = rows[rows["quantity"] == quantity]
        seconds = side_by_side(of_quantity, "seconds", ["network", "layer"], names)
        times_as_fast = seconds.rdiv(seconds.pop("stock"), axis=0)
        ratios = {name: own.dropna() for name, own in times_as_fast.items()}
        axis.boxplot([*ratios.values()], tick_labels=[*ratios], whis=(0, 100))
        axis.tick_params("x", rotation=60)
        axis.set(title=quantity, yscale="log")
        axis.axhline(1, color="gray", linewidth=0.8)
    axes[0][0].set_ylabel("times as fast as stock")
    plt.close(figure)
    return {"ratios": figure}


QUESTION = Question(
    __doc__,
    cases,
    tables,
    figures,
    claims=(
        *(
            Ratio(CASE, theirs, OURS).claim(
                f"{quantity}, {theirs} over {OURS}: {statistic}",
                least,
                f"quantity == '{quantity}'",
                statistic,
            )
            for quantity, theirs, limit in (
                ("kfac_reduce", "stock", 8),
                ("kfac_reduce", "einconv simplified", 2.5),
                ("kfac_expand", "stock", 3),
            )
            for statistic, least in (("median", limit), ("min", 1))
        ),
        *(
            Ratio(CASE, "einconv", OURS).claim(
                f"{quantity} is never slower than the plain network",
                1,
                f"quantity == '{quantity}'",
            )
            for quantity in reversed(QUANTITIES)
        ),
    ),
)
