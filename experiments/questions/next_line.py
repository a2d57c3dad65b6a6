"""How fast does our backend compute factors on curvlinops' next line?"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd

from experiments.contenders import operators
from experiments.contenders.operators import BACKENDS, KINDS, Setting
from experiments.harness.case import Case, Contest, Options, Row
from experiments.harness.question import Claim, Question
from experiments.harness.ratios import least_ratio, side_by_side
from experiments.subjects.networks import Subject

_KEY = ["kind", "network", "pixels", "batch_size"]


def cases(options: Options) -> Iterator[Case]:
    """List the kinds of factors of networks; on a GPU, those that curvlinops shows."""
    workloads = [("resnet18", 224, 8), ("resnet18", 64, 32)]
    if options.device.type == "cuda":
        workloads = [("resnet50", 224, 32), ("resnet18", 32, 128)]
    for network, pixels, batch_size in (
        [("resnet18", 32, 2)] if options.quick else workloads
    ):
        for kind in ("expand",) if options.quick else KINDS:
            subject = Subject(network, pixels)
            setting = Setting(kind, subject, batch_size, options.device)
            values = (kind, *subject, batch_size)
            yield Case(dict(zip(_KEY, values, strict=True)), partial(_rows, setting))


def _rows(setting: Setting, options: Options) -> Iterator[Row]:
    operators.require("next")
    # tracing takes a minute
    backends = ("hooks", "ours") if options.quick else BACKENDS
    yield from Contest(
        operators.factors(setting, backends),
        baselines={"gradient": partial(operators.gradient, setting)},
        # eigenvectors may differ by more than rounding
        read=operators.traces,
        weighed=False,
    ).rows(options)


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Times over ours, and over those of a gradient."""
    names = [*BACKENDS, "gradient"]
    seconds = side_by_side(rows, "seconds", _KEY, names)
    return {
        f"Time over {title}": seconds[names[:-1]]
        .div(seconds[name], axis=0)
        .dropna(axis=1, how="all")
        for title, name in (("ours", "ours"), ("a gradient's", "gradient"))
    }


QUESTION = Question(
    title="How fast does our backend compute factors on curvlinops' next line?",
    reading=(
        "The next line, which is in curvlinops' repository and not released yet, "
        "computes Kronecker factors by backends: *hooks*, and *make_fx*, which traces "
        "at each call; *compiled* is what it traced, and the time to compile does not "
        "count. *Ours* registers itself as `tn`. A *gradient* is the forward and "
        "backward pass alone."
    ),
    cases=cases,
    tables=tables,
    claims=tuple(
        Claim(
            f"Time of {backend} over ours, the worst case",
            least_ratio(_KEY, theirs=backend),
            "at least",
            1,
        )
        for backend in BACKENDS[:-1]
    ),
)
