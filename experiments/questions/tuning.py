"""What does it take, and bring, to tune whole networks?

`tn_extensions.tune` runs the best-ranked candidates of each layer's plan once, and
remembers the fastest. A gain of one: the estimate had chosen it already. Seconds are
those that tuning took.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pandas as pd
import torch
from torch import nn

from experiments.contenders.quantities import normal
from experiments.harness.case import Case, Options, Row
from experiments.harness.question import Question
from experiments.subjects.layers import NETWORKS, layers_of
from tn_extensions import tune


class Convolutions(nn.Module):
    """The different convolutions of a network, side by side.

    Each takes an input of its own, so that no more than one is needed at a time.
    """

    def __init__(self, network: str, device: torch.device) -> None:
        super().__init__()
        self.device, self.layers = device, layers_of(network)
        modules = [layer.module(str(device)) for layer in self.layers]
        self.convolutions = nn.ModuleList(modules)

    def forward(self, batch_size: int) -> None:
        """Run all convolutions."""
        for layer, convolution in zip(self.layers, self.convolutions, strict=True):
            convolution(normal(layer.input_shape(batch_size), self.device))


def cases(options: Options) -> Iterator[Case]:
    """List the networks."""
    for network in ("3c3d",) if options.quick else NETWORKS:
        size = 2 if options.quick else 8
        yield Case({"network": network, "batch_size": size}, _rows, network, size)


def _rows(network: str, batch_size: int, options: Options) -> Iterator[Row]:
    model = Convolutions(network, options.device)
    start = time.perf_counter()
    report = tune(model, batch_size, ("kfac_expand", "kfac_reduce"), progress=False)
    seconds = time.perf_counter() - start
    for tuned in report:
        layer = model.layers[int(tuned.layers[0].rpartition(".")[2])]
        yield {
            "layer": layer.name,
            "quantity": tuned.quantity,
            "estimated": tuned.plan.estimated.name,
            "measured": tuned.plan.candidate.name,
            "gain": tuned.gain,
            "seconds": seconds / len(report),
        }


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tabulate gains by network, and the layers that gain most."""
    grouped = rows.groupby(["network", "quantity"])
    summary = grouped["gain"].agg(["count", "median", "max"])
    summary["seconds"] = grouped["seconds"].sum()
    columns = ["layer", "quantity", "estimated", "measured", "gain"]
    most = rows.nlargest(15, "gain").set_index("network")[columns]
    return {
        "Time of the estimated choice over the measured one": summary,
        "The layers that gain most": most,
    }


QUESTION = Question(__doc__, cases, tables)
