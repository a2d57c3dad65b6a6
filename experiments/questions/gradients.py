"""How fast are gradients of samples, their norms, GGN diagonals and Grams?

BackPACK's functions, torch.func, Opacus' samplers, and ours by estimated and by
measured plans, on each layer of ResNet-18 and All-CNN-C. Results are compared with
float64 first. The Gram matrix of BackPACK is that of its per-sample gradients; Opacus'
norms are those of its gradients, as ghost clipping computes them. *Best of theirs* is
the fastest of each layer, so that a ratio below one says where another toolkit is the
better choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod

import pandas as pd

from experiments.contenders.quantities import MAIN, Asked, contest
from experiments.harness.case import Case, Options, Row
from experiments.harness.question import Claim, Question
from experiments.subjects.layers import layers_of

_OURS = ["ours", "ours, measured"]
BEST = "best of theirs"


def cases(options: Options) -> Iterator[Case]:
    """List all quantities, with few vectors and with many."""
    for network in ("2c2d",) if options.quick else ("resnet18", "allcnnc"):
        for layer in layers_of(network):
            wanted = [Asked(name, layer) for name in MAIN[2:4]]
            for number in (1, 10):
                wanted += [Asked(name, layer, 8, number) for name in MAIN[4:]]
            # stock holds a gradient for each vector
            positions = prod(layer.conv.output_size)
            if positions <= 196:
                wanted.append(Asked("ggn_diagonal", layer, 2, 100))
            if positions <= 49 and layer.conv.out_channels >= 512:
                wanted.append(Asked("ggn_diagonal", layer, 1, 1000))
            for asked in wanted:
                size = 2 if options.quick else asked.batch_size
                asked = asked._replace(batch_size=size)
                yield Case(asked.key, _rows, asked)


def _rows(asked: Asked, options: Options) -> Iterator[Row]:
    weighed = asked.quantity != "ggn_gram" and asked.num_vectors == 10
    yield from contest(asked, options.device, weighed=weighed).rows(options)


def _table(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Tabulate contenders side by side; the best of theirs comes last."""
    index = ["quantity", "num_vectors", "network", "layer", "batch_size"]
    table = rows.pivot_table(column, index, "contender")
    table = table.reindex(columns=table.columns.union(_OURS))
    return table.assign(**{BEST: table.drop(columns=_OURS).min(axis=1)})


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Divide what others take by what ours take, measured."""
    table = _table(rows, "seconds")
    return table.div(table.pop("ours, measured"), axis=0)


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tabulate ratios of times: medians, worst layers, and all of them."""
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


def _statistic(quantity: str, name: str, rows: pd.DataFrame) -> float:
    best = ratios(rows[rows["quantity"] == quantity])[BEST]
    return float(getattr(best, name)())


QUESTION = Question(
    __doc__,
    cases,
    tables,
    claims=tuple(
        Claim(
            f"{quantity}: {BEST} over ours, {word}",
            partial(_statistic, quantity, statistic),
            "at least",
            1,
        )
        for quantity in MAIN[2:]
        for word, statistic in (("median", "median"), ("worst layer", "min"))
    ),
)
