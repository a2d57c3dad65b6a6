"""How fast and lean are operators, against curvlinops'?

Building is `cls(...)`, `compute_kronecker_factors()` and, of EKFAC,
`compute_eigenvalue_correction()`, on one batch, for the parameters that stock supports;
*all layers* are those that ours does. *Gradient* is the forward and backward pass
alone. An inverse is made, and inverts factors, at its *first* product, not *again*.
Memory is the peak of building beyond a gradient's, with what the operator keeps.
EKFACs, and inverses, may differ by more than rounding where factors have close
eigenvalues; their traces are compared sharply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import matmul
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from experiments.contenders import operators
from experiments.contenders.operators import KINDS, OURS, STOCK, Setting
from experiments.harness.case import Case, Contest, Options, Row
from experiments.harness.measure import Call, num_bytes
from experiments.harness.question import Question
from experiments.harness.ratios import (
    Ratio,
    bars,
    memory,
    memory_claim,
    side_by_side,
    times,
)
from experiments.subjects.networks import Subject

TOLERANCE = 1e-4
LOOSE_TOLERANCE = 1e-1
"""Of EKFAC's products, as eigenvectors of close eigenvalues are arbitrary, and of
inverses, which multiply rounding by the condition number. On ResNet-18, rounding images
differently moves stock's EKFAC by 0.01, its inverse by 0.02. Traces are sharp.
"""
INVERSES: dict[str, dict[str, Any]] = {
    "inverse": {"damping": 1e-2},
    "exact inverse": {"damping": 1e-2, "use_exact_damping": True},
}
WORKLOADS = (
    (Subject("resnet18", 224), 8),
    (Subject("resnet18", 64), 16),
    (Subject("allcnnc"), 32),
    (Subject("unet", 64), 8),
)
"""Networks and batch sizes."""

_CASE = ["kind", "network", "pixels", "batch_size", "fisher_type"]
_SLOW_ROUNDS = 3
"""Of what makes stock decompose factors, which takes it 15 s on ResNet-18."""


def cases(options: Options) -> Iterator[Case]:
    """List operators, and for one network those of other Fisher types.

    The types differ in what is backpropagated, and in nothing else.
    """
    for kind in ("expand",) if options.quick else KINDS:
        workloads = ((Subject("unet", 16), 2),) if options.quick else WORKLOADS
        for subject, size in workloads:
            has_all = subject.network == "allcnnc" and kind == "expand"
            for fisher in ("empirical", *(("mc", "type-2") if has_all else ())):
                key = dict(zip(_CASE, (kind, *subject, size, fisher), strict=True))
                setting = Setting(kind, subject, size, options.device, fisher)
                yield Case(key, _rows, setting)


def _rows(setting: Setting, options: Options) -> Iterator[Row]:
    """Measure building, then products with the operator and its inverses."""
    operators.require("3.0")
    is_corrected = setting.kind == "ekfac"
    model, _ = setting.make(small=False)
    generator = torch.Generator().manual_seed(0)
    vector = [
        torch.randn(p.shape, generator=generator).to(p)
        for p in operators.supported(model)
    ]

    def read(operator: Any) -> list[Tensor]:
        products = [] if is_corrected else operator @ vector
        return [*products, torch.as_tensor(operator.trace)]

    builds = operators.contenders(setting)
    building = Contest(
        builds,
        baselines=operators.baselines(setting),
        read=read,
        tolerance=TOLERANCE,
        rounds=_SLOW_ROUNDS if is_corrected else None,
    )
    for row in building.rows(options):
        yield {"stage": "build"} | row
    if setting.fisher_type != "empirical":
        return

    built = {name: build(small=False)() for name, build in builds.items()}
    kept = {name: _kept_bytes(operator) for name, operator in built.items()}
    tolerance = LOOSE_TOLERANCE if is_corrected else TOLERANCE
    for stage, makes in _stages(built, is_corrected, options.quick):
        is_again = not stage.endswith("first")
        contest = Contest(
            {n: partial(_product, make, vector, is_again) for n, make in makes.items()},
            tolerance=tolerance,
            rounds=_SLOW_ROUNDS if stage == "exact inverse, first" else None,
            weighed=False,
            notes=lambda name: {"kept_bytes": kept[name]},
        )
        for row in contest.rows(options):
            yield {"stage": stage} | row
        tolerance = LOOSE_TOLERANCE


def _stages(
    built: Mapping[str, Any], is_corrected: bool, quick: bool
) -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
    """List what to multiply by, and how to make it."""
    yield "product", {name: partial(built.__getitem__, name) for name in built}
    for title, options in INVERSES.items():
        is_exact = "use_exact_damping" in options
        # EKFAC has no other inverse; KFAC decomposes factors for this one
        if not is_exact if is_corrected else is_exact and quick:
            continue
        makes: dict[str, Callable[[], Any]] = {}
        for name, library in (("stock", STOCK), ("ours", OURS)):
            inverse = operators.take(library, "KFACInverseLinearOperator")
            makes[name] = partial(inverse, built[name], **options)
        yield f"{title}, first", makes
        yield f"{title}, again", makes


def _product(
    make: Callable[[], Any], vector: list[Tensor], is_again: bool, small: bool
) -> Call:
    """Multiply; or make an operator each time, whose first product inverts factors."""
    if is_again:
        return partial(matmul, make(), vector)
    return lambda: make() @ vector


def _kept_bytes(operator: Any) -> int:
    """Count the bytes of what a built operator keeps, besides the network."""
    state = operator.state_dict()
    del state["model_func_state_dict"]
    return num_bytes(state)


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tabulate the times of building and of products, and memory."""
    is_building = rows["stage"] == "build"
    names = ("stock", "ours", "gradient", "ours, all layers")
    found = {"Building": times(rows[is_building], _CASE, names)}
    if not is_building.all():
        products = rows[~is_building].dropna(subset="stage")
        found["Products"] = times(products, ["stage", *_CASE], names[:2])
    if "bytes" in rows:
        kept = side_by_side(rows, "kept_bytes", _CASE, names[:2]) / 2**20
        title = "Memory of building beyond a gradient's, and of what is kept, MiB"
        held = memory(rows, _CASE, "gradient")
        found[title] = held.join(kept.add_suffix(", kept"))
    return found


def figures(rows: pd.DataFrame) -> Mapping[str, Any]:
    """Draw bars of the ratios of building."""
    ratios = Ratio(_CASE).of(rows[rows["stage"] == "build"])
    return {"building": bars(ratios, "Building an operator: stock's time over ours")}


_LEAST_RATIOS = {
    ("expand", 224): 1.8,
    ("expand", 64): 1.5,
    ("reduce", 224): 1.3,
    ("reduce", 64): 1.3,
    ("ekfac", 224): 2.0,
    ("ekfac", 64): 2.0,
}
"""Least ratios of times to build for ResNet-18, by kind and pixels."""

QUESTION = Question(
    __doc__,
    cases,
    tables,
    figures,
    claims=(
        *(
            Ratio(_CASE).claim(
                f"Building {kind}, ResNet-18, {pixels} pixels: stock's time over ours",
                least,
                "stage == 'build' and network == 'resnet18' and "
                f"kind == '{kind}' and pixels == {pixels}",
            )
            for (kind, pixels), least in _LEAST_RATIOS.items()
        ),
        Ratio(["stage", *_CASE]).claim(
            "Products with operators and inverses: stock's time over ours",
            1,
            "stage != 'build'",
        ),
        *(
            memory_claim(
                f"{kind} of ResNet-18: our share of stock's memory",
                most,
                _CASE,
                "gradient",
                f"kind == '{kind}' and network == 'resnet18'",
            )
            for kind, most in (("expand", 0.5), ("ekfac", 0.2))
        ),
    ),
)
