"""What is gained by evaluating several quantities of a layer together?

What several of BackPACK's extensions ask of a kernel in one backward pass: by
`functional.together`, and one function after the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from experiments.contenders.quantities import SMALL, VARIOUS, normal
from experiments.harness.case import Case, Contest, Options, Row
from experiments.harness.measure import Call
from experiments.harness.question import Question
from experiments.harness.ratios import Ratio, times
from experiments.subjects.layers import Layer
from tn_extensions import Conv, functional, planning

FLOWS: dict[str, tuple[tuple[str, ...], int]] = {
    "BatchGrad, BatchL2Grad, SumGradSquared, Variance": (
        ("per_sample_grad", "per_sample_grad_norm", "ggn_diagonal", "weight_vjp"),
        0,
    ),
    "BatchL2Grad, SumGradSquared, Variance": (
        ("per_sample_grad_norm", "ggn_diagonal", "weight_vjp"),
        0,
    ),
    "KFAC, BatchL2Grad": (("kfac_expand", "per_sample_grad_norm"), 0),
    "DiagGGN, GGNGram": (("ggn_diagonal", "ggn_gram"), 10),
}
"""BackPACK's extensions in one backward pass: their quantities, and vectors."""

_DEPTHWISE = Layer("various", Conv.make(96, 96, 3, (32, 32), 1, 1, groups=96))
_CASE = ("planning", "flow", "layer")


def cases(options: Options) -> Iterator[Case]:
    """List all flows on layers of several kinds."""
    layers = (*VARIOUS[:3], VARIOUS[4], _DEPTHWISE)
    for layer in (SMALL,) if options.quick else layers:
        for flow in FLOWS:
            for mode in ("estimate", "measure"):
                key = {"flow": flow, "layer": layer.name, "planning": mode}
                yield Case(key, _rows, flow, layer, mode)


@torch.no_grad()
def _rows(flow: str, layer: Layer, mode: Any, options: Options) -> Iterator[Row]:
    asked, vectors = FLOWS[flow]
    x = normal(layer.input_shape(8), options.device)
    lead = (vectors,) if vectors else ()
    g = normal((*lead, *layer.output_shape(8)), options.device, seed=1)
    given = {"x": x, "g": g, "S": g if vectors else g[None]}

    def apart() -> list[Tensor]:
        found = []
        for name in asked:
            function = getattr(functional, name)
            own = {*inspect.signature(function).parameters} & {*given}
            found.append(function(**{key: given[key] for key in own}, conv=layer.conv))
        return found

    def together() -> list[Tensor]:
        return functional.together(*asked, x=x, g=g, conv=layer.conv)

    def build(call: Call, small: bool) -> Call:
        return call

    with planning(mode):
        joint = [name for name in asked if not name.startswith("kfac")]
        plan = functional.plan_together(*joint, x=x, g=g, conv=layer.conv)
        shared = plan.sharing.title if plan.sharing else ""
        contest = Contest(
            {each.__name__: partial(build, each) for each in (apart, together)},
            notes=lambda name: {"shared": shared},
            weighed=False,
        )
        yield from contest.rows(options)


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tabulate times, and what is shared."""
    shared = rows.pivot_table("shared", ["planning", "flow"], "layer", "first")
    return {
        "Times": times(rows, _CASE, ("apart", "together")),
        "What is shared": shared,
    }


QUESTION = Question(
    __doc__,
    cases,
    tables,
    claims=(
        Ratio(_CASE, "apart", "together").claim(
            "Time apart over together, worst", 0.95
        ),
    ),
)
