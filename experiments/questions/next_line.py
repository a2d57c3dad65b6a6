"""How fast does our backend compute factors on curvlinops' next line?

The next line, which is in curvlinops' repository and not released yet, computes
Kronecker factors by backends: *hooks*, and *make_fx*, which traces at each call;
*compiled* is what it traced, and the time to compile does not count. *Ours* registers
itself as `tn`. A *gradient* is the forward and backward pass alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from experiments.contenders.operators import (
    KINDS,
    OURS,
    Setting,
    gradient,
    parameters,
    require,
    take,
)
from experiments.harness.case import Case, Contest, Options, Row, Unsupported
from experiments.harness.measure import Call
from experiments.harness.question import Question
from experiments.harness.ratios import Ratio, side_by_side
from experiments.subjects.networks import Subject
from tn_extensions.kronecker.factors import trace

BACKENDS = ("hooks", "make_fx", "compiled", "ours")
_CASE = ["kind", "network", "pixels", "batch_size"]


def cases(options: Options) -> Iterator[Case]:
    """List the kinds of factors of networks; on a GPU, those that curvlinops shows."""
    workloads = [("resnet18", 224, 8), ("resnet18", 64, 32)]
    if options.device.type == "cuda":
        workloads = [("resnet50", 224, 32), ("resnet18", 32, 128)]
    if options.quick:
        workloads = [("resnet18", 32, 2)]
    for network, pixels, size in workloads:
        for kind in ("expand",) if options.quick else KINDS:
            setting = Setting(kind, Subject(network, pixels), size, options.device)
            key = dict(zip(_CASE, (kind, network, pixels, size), strict=True))
            yield Case(key, _rows, setting)


def _rows(setting: Setting, options: Options) -> Iterator[Row]:
    require("next")
    # tracing takes a minute
    backends = ("hooks", "ours") if options.quick else BACKENDS
    yield from Contest(
        {backend: partial(_factors, backend, setting) for backend in backends},
        baselines={"gradient": partial(gradient, setting)},
        # eigenvectors may differ by more than rounding
        read=traces,
        weighed=False,
    ).rows(options)


def _factors(backend: str, setting: Setting, small: bool = False) -> Call:
    model, batch = setting.make(small)
    name, approx = KINDS[setting.kind]
    # as our operators call it: factors of few data stay vectors
    options = {"groups": "separate"} if backend == "ours" else {}
    names = {"ours": "tn", "compiled": "make_fx"}
    computer = take(OURS, name)._BACKENDS[names.get(backend, backend)](
        model,
        nn.CrossEntropyLoss(),
        parameters(model, (nn.Conv2d, nn.Linear)),
        [batch],
        fisher_type=setting.fisher_type,
        kfac_approx=approx,
        check_deterministic=False,
        num_data=len(batch[0]),
        num_per_example_loss_terms=1,
        **options,
    )
    if backend != "compiled":
        compute: Callable[[], Any] = computer.compute
        return compute
    if setting.kind == "ekfac":
        raise Unsupported("EKFAC's eigenvalues have no function to compile beforehand")
    traced, mapping = computer._trace_batch_functions()
    compiled = {size: torch.compile(traced[size]) for size in traced}
    return lambda: computer._compute_kronecker_factors((compiled, mapping))


def traces(found: Any) -> Tensor:
    """Compute the traces of all factors; of EKFAC's blocks, by their eigenvalues."""
    left, right, *others, _ = found
    if others:
        return torch.stack([one.sum() for _, one in sorted(others[0].items())])
    values = [one for own in (left, right) for _, one in sorted(own.items())]
    # without groups, factors have no axis for them
    return torch.stack(
        [trace(each.reshape(-1, *each.shape[-2:])).sum() for each in values]
    )


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tabulate times over ours, and over those of a gradient."""
    seconds = side_by_side(rows, "seconds", _CASE, [*BACKENDS, "gradient"])
    return {
        f"Time over {title}": seconds[[*BACKENDS]]
        .div(seconds[name], axis=0)
        .dropna(axis=1, how="all")
        for title, name in (("ours", "ours"), ("a gradient's", "gradient"))
    }


QUESTION = Question(
    __doc__,
    cases,
    tables,
    claims=tuple(
        Ratio(_CASE, backend).claim(f"Time of {backend} over ours, the worst case", 1)
        for backend in BACKENDS[:-1]
    ),
)
