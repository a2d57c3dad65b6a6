"""How fast are quantities of a convolution, over the paper's nine networks?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, get_args

import matplotlib.pyplot as plt
import pandas as pd

from experiments.contenders.convolutions import Quantity, contenders, reference
from experiments.harness.case import Case, Contest, Options, Row
from experiments.harness.question import Claim, Question
from experiments.subjects.layers import NETWORKS, Layer, layers_of

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
BATCH_SIZE = 8


def chosen(options: Options) -> Iterator[Layer]:
    """List the layers; of a quick look, those of a small network."""
    for network in ("3c3d",) if options.quick else NETWORKS:
        yield from layers_of(network)


def key_of(quantity: Quantity, layer: Layer, options: Options) -> dict[str, Any]:
    """Make the key of a case."""
    return {
        "quantity": quantity,
        "network": layer.network,
        "layer": layer.name,
        "category": layer.category,
        "count": layer.occurrences,
        "batch_size": 2 if options.quick else BATCH_SIZE,
    }


def cases_of(
    quantities: Iterable[Quantity], rows: Callable[..., Iterator[Row]], options: Options
) -> Iterator[Case]:
    """List quantities of all layers; ``rows`` takes quantity, layer and batch size."""
    for quantity in quantities:
        for layer in chosen(options):
            key = key_of(quantity, layer, options)
            yield Case(key, partial(rows, quantity, layer, key["batch_size"]))


def cases(options: Options) -> Iterator[Case]:
    """List all quantities of all layers."""
    # factors first: they are what others unfold for
    yield from cases_of(reversed(QUANTITIES), _rows, options)


def _rows(
    quantity: Quantity, layer: Layer, batch_size: int, options: Options
) -> Iterator[Row]:
    arguments = (quantity, layer, batch_size, options.device)
    contest = Contest(
        contenders(*arguments), partial(reference, *arguments), weighed=False
    )
    yield from contest.rows(options)


def against(
    rows: pd.DataFrame, theirs: str, ours: str = "ours, measured"
) -> pd.DataFrame:
    """Ratios of a contender's times to ours: a row for each case that has both."""
    index = ["quantity", "network", "layer", "category", "count"]
    seconds = rows.pivot_table("seconds", index, "contender")
    return (seconds[theirs] / seconds[ours]).dropna().rename("ratio").reset_index()


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Medians, best and worst, by category, against each contender."""
    found = {}
    for theirs in ("stock", "einconv", "einconv simplified", "curvlinops", "ours"):
        ratios = against(rows, theirs)
        if not len(ratios):
            continue
        grouped = ratios.groupby(["quantity", "category"])["ratio"]
        overall = ratios.assign(category="all").groupby(["quantity", "category"])
        table = pd.concat([_spread(grouped), _spread(overall["ratio"])]).sort_index(
            level=0, sort_remaining=False
        )
        found[f"Time of {theirs} over ours, measured"] = table
    worst = against(rows, "stock").nsmallest(15, "ratio")
    found["The layers where stock comes closest, or wins"] = worst.drop(
        columns="count"
    ).set_index("quantity")
    return found


def _spread(grouped: Any) -> pd.DataFrame:
    return grouped.agg(["median", "max", "min", "count"]).rename(
        columns={"max": "best", "min": "worst", "count": "layers"}
    )


def figures(rows: pd.DataFrame) -> Mapping[str, Any]:
    """Box plots of the ratios, by category, as in the paper's appendix."""
    present = [q for q in QUANTITIES if q in set(rows["quantity"])]
    figure, axes = plt.subplots(
        1, len(present), figsize=(3.2 * len(present), 3.4), sharey=True, squeeze=False
    )
    names = ("einconv", "einconv simplified", "ours", "ours, measured")
    for axis, quantity in zip(axes[0], present, strict=True):
        of_quantity = rows[rows["quantity"] == quantity]
        index = ["network", "layer"]
        seconds = of_quantity.pivot_table("seconds", index, "contender")
        columns = [name for name in names if name in seconds]
        ratios = [(seconds["stock"] / seconds[name]).dropna() for name in columns]
        axis.boxplot(ratios, tick_labels=columns, whis=(0, 100))
        axis.tick_params("x", rotation=60)
        axis.set(title=quantity, yscale="log")
        axis.axhline(1, color="gray", linewidth=0.8)
    axes[0][0].set_ylabel("times as fast as stock")
    plt.close(figure)
    return {"ratios": figure}


def _ratio(quantity: str, theirs: str, statistic: str) -> Any:
    def value(rows: pd.DataFrame) -> float:
        ratios = against(rows[rows["quantity"] == quantity], theirs)["ratio"]
        return float(getattr(ratios, statistic)())

    return value


def _claims() -> Iterator[Claim]:
    for quantity, theirs, limit in (
        ("kfac_reduce", "stock", 8),
        ("kfac_reduce", "einconv simplified", 2.5),
        ("kfac_expand", "stock", 3),
    ):
        for statistic, least in (("median", limit), ("min", 1)):
            yield Claim(
                f"{quantity}, {theirs} over ours, measured: {statistic}",
                _ratio(quantity, theirs, statistic),
                "at least",
                least,
            )
    for quantity in QUANTITIES:
        yield Claim(
            f"{quantity} is never slower than the plain network",
            _ratio(quantity, "einconv", "min"),
            "at least",
            1,
        )


QUESTION = Question(
    title="How fast are quantities of a convolution, over the paper's nine networks?",
    reading=(
        "The paper's tables and box plots, on this machine. *Stock* is torch's own "
        "kernel for the forward pass and the vector-Jacobian products, and unfolding "
        "for the Kronecker factors. *einconv* is the paper's network contracted along "
        "opt_einsum's path, *einconv simplified* after the paper's rewrites, both "
        "prepared beforehand. *Ours* takes plans by estimate, or by measuring "
        "candidates. Ratios above one: ours is faster."
    ),
    cases=cases,
    tables=tables,
    figures=figures,
    claims=tuple(_claims()),
)
