"""How fast are gradients of samples, their norms, GGN diagonals and Gram matrices?"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod

import pandas as pd

from experiments.contenders.gradients import contenders, reference
from experiments.contenders.quantities import Asked
from experiments.harness.case import Case, Contest, Options, Row
from experiments.harness.question import Claim, Question, Value
from experiments.subjects.layers import layers_of

_NETWORKS = ("resnet18", "allcnnc")
_WITHOUT_VECTORS = ("per_sample_grad", "per_sample_grad_norm")
_OURS = ("ours", "ours, measured")


def cases(options: Options) -> Iterator[Case]:
    """List all quantities, with few vectors and with many."""
    for network in ("2c2d",) if options.quick else _NETWORKS:
        for layer in layers_of(network):
            wanted = [Asked(name, layer) for name in _WITHOUT_VECTORS]
            for number in (1, 10):
                wanted += [
                    Asked(name, layer, num_vectors=number)
                    for name in ("ggn_diagonal", "ggn_gram")
                ]
            # stock holds a gradient for each vector
            positions = prod(layer.conv.output_size)
            if positions <= 196:
                wanted.append(Asked("ggn_diagonal", layer, 2, 100))
            if positions <= 49 and layer.conv.out_channels >= 512:
                wanted.append(Asked("ggn_diagonal", layer, 1, 1000))
            for asked in wanted:
                size = 2 if options.quick else asked.batch_size
                asked = asked._replace(batch_size=size)
                yield Case(asked.key, partial(_rows, asked))


def _rows(asked: Asked, options: Options) -> Iterator[Row]:
    contest = Contest(
        contenders(asked, options.device),
        partial(reference, asked, options.device),
        weighed=asked.quantity != "ggn_gram" and asked.num_vectors == 10,
    )
    yield from contest.rows(options)


def _table(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Tabulate contenders side by side; the best of theirs comes last."""
    index = ["quantity", "num_vectors", "network", "layer", "batch_size"]
    table = rows.pivot_table(column, index, "contender")
    table = table.reindex(columns=table.columns.union(list(_OURS)))
    theirs = [name for name in table if name not in _OURS]
    return table.assign(**{"best of theirs": table[theirs].min(axis=1)})


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Divide what others take by what ours take, measured."""
    table = _table(rows, "seconds")
    return table.div(table.pop("ours, measured"), axis=0)


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Ratios of times: medians, worst layers, and all of them."""
    of_all = ratios(rows)
    grouped = of_all.groupby(["quantity", "num_vectors"])
    found = {
        "Time over ours, measured: median over layers": grouped.median(),
        "Time over ours, measured: the worst layer": grouped.min(),
        "Time over ours, measured: each layer": of_all,
    }
    if "bytes" in rows and rows["bytes"].notna().any():
        held = _table(rows, "bytes") / 2**20
        median = held.groupby(["quantity", "num_vectors"]).median()
        found["Memory beyond inputs and results, MiB: median over layers"] = median
    return found


def _least(quantity: str, statistic: str) -> Value:
    def value(rows: pd.DataFrame) -> float:
        of_quantity = rows[rows["quantity"] == quantity]
        best = ratios(of_quantity)["best of theirs"]
        return float(getattr(best, statistic)())

    return value


QUESTION = Question(
    title="How fast are gradients of samples, their norms, GGN diagonals and Grams?",
    reading=(
        "BackPACK's functions, torch.func, Opacus' samplers, and ours by estimated and "
        "by measured plans, on each layer of ResNet-18 and All-CNN-C. Results are "
        "compared with float64 first. The Gram matrix of BackPACK is that of its "
        "per-sample gradients; Opacus' norms are those of its gradients, as ghost "
        "clipping computes them. *Best of theirs* is the fastest of each layer, so "
        "that a ratio below one says where another toolkit is the better choice."
    ),
    cases=cases,
    tables=tables,
    claims=tuple(
        Claim(
            f"{quantity}: best of theirs over ours, {word}",
            _least(quantity, statistic),
            "at least",
            1,
        )
        for quantity in (*_WITHOUT_VECTORS, "ggn_diagonal", "ggn_gram")
        for word, statistic in (("median", "median"), ("worst layer", "min"))
    ),
    preload=("experiments.contenders.gradients",),
)
