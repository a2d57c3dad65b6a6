"""How exact are KFAC's factors, also where the border is large?

Largest error of an entry against float64, relative to the entry's scale: the product of
the root mean squares of its row and its column. On the second input, the outermost
pixels are 1e4 times as large as the others, which betrays who subtracts a border from a
whole. All candidates of a plan are looked at, since any of them may be chosen after
measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import inf, isnan, prod

import pandas as pd
import torch
from torch import Tensor

from experiments.contenders.quantities import (
    CONTENDERS,
    SMALL,
    VARIOUS,
    Asked,
    reference,
    unfolded,
)
from experiments.harness.case import Case, Options, Row, in_a_line
from experiments.harness.question import Claim, Question, Value

QUANTITIES = ("kfac_expand", "kfac_reduce")
FRAME = 1e4


def framed(x: Tensor) -> Tensor:
    """Copy an input, with its border, one pixel wide, 1e4 times as large.

    A factor that is computed as a whole minus the border loses all digits of the
    interior on such an input.
    """
    interior = (slice(None), slice(None), *(slice(1, -1) for _ in x.shape[2:]))
    result = x * FRAME
    result[interior] = x[interior]
    return result


def cases(options: Options) -> Iterator[Case]:
    """List both factors of layers with two dimensions, whose input torch unfolds."""
    layers = [each for each in VARIOUS if each.conv.num_dims == 2]
    for layer in (SMALL,) if options.quick else layers:
        for quantity in QUANTITIES:
            for border in ("as the interior", "1e4 times the interior"):
                asked = Asked(quantity, layer, batch_size=2)
                key = asked.key | {"border": border}
                yield Case(key, _rows, asked, border.startswith("1e4"))


def _rows(asked: Asked, is_framed: bool, options: Options) -> Iterator[Row]:
    tensors = asked.tensors(options.device)
    if is_framed:
        tensors["x"] = framed(tensors["x"])
    exact, scale = reference(asked, tensors), scales(asked, tensors["x"])

    def contender(name: str) -> Tensor:
        found: Tensor = CONTENDERS[asked.quantity][name](asked, tensors)()
        return found

    calls: dict[str, Callable[[], Tensor]] = {
        name: partial(contender, name) for name in ("stock", "curvlinops", "ours")
    }
    plan = asked.plan(options.device)
    for number, one in enumerate((plan.candidate, *plan.rejected)):
        if one.peak * 4 <= plan.target.budget:
            run = partial(one.with_value(plan.network.shape).value, tensors)
            calls[f"{number}: {one.name}"] = run
    divisor = asked.batch_size
    if asked.quantity == "kfac_reduce":
        divisor *= prod(asked.layer.conv.output_size) ** 2
    for name, call in calls.items():
        is_candidate = name[0].isdigit()
        row: Row = {"contender": "any of our candidates" if is_candidate else name}
        try:
            found = call() / divisor if is_candidate else call()
            row |= {"error": relative_error(found, exact, scale), "plan": name}
        except Exception as reason:  # whatever stops a toolkit is a result
            row["reason"] = in_a_line(reason)
        yield row


def scales(asked: Asked, x: Tensor) -> Tensor:
    """Compute what errors of a factor's entries are measured against.

    The scale of a patch entry is its root mean square over the batch: the norm over
    positions for KFAC-expand; for KFAC-reduce the norm divided by their number, which
    is what a mean of random signs amounts to. An entry of a factor has the product of
    the scales of its row and column: for KFAC-expand the largest that it could be
    (Cauchy-Schwarz). Unlike the entries, scales are never small by accident.
    """
    module = asked.layer.module()
    norms = [unfolded(module, each)[0].norm(dim=-1) for each in x.double().split(1)]
    scale = torch.stack(norms).square().mean(0).sqrt()
    if asked.quantity == "kfac_reduce":
        scale = scale / prod(asked.layer.conv.output_size)
    return scale[:, :, None] * scale[:, None, :]


def relative_error(found: Tensor, exact: Tensor, scale: Tensor) -> float:
    """Compute the largest error of an entry, relative to its scale.

    It is infinite if an entry is not finite, or not zero where it must be.
    """
    error = found.double().reshape(exact.shape).sub(exact).abs_()
    # zero over zero is an entry that is zero as it should be
    worst = float(torch.where(error == 0, error, error / scale).max())
    return inf if isnan(worst) else worst


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tabulate the largest errors: of all layers, and of each."""
    by = {
        "Largest error": ["quantity", "border"],
        "Largest error of each layer": ["quantity", "layer", "border"],
    }
    return {
        title: rows.pivot_table("error", index, "contender", aggfunc="max")
        for title, index in by.items()
    }


def _worst(contender: str) -> Value:
    return lambda rows: rows[rows["contender"] == contender]["error"].max()


QUESTION = Question(
    __doc__,
    cases,
    tables,
    claims=(
        Claim("Largest error of ours", _worst("ours"), "at most", 1e-5),
        Claim("... of any candidate", _worst("any of our candidates"), "at most", 1e-5),
    ),
)
