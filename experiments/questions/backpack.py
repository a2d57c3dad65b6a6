"""How fast and lean are whole backward passes, against BackPACK's?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pandas as pd

from experiments.contenders.backward import contenders, replaced
from experiments.harness.case import Case, Contest, Options, Row
from experiments.harness.question import Claim, Question
from experiments.harness.ratios import (
    bars,
    largest_share,
    least_ratio,
    memory,
    times,
)
from experiments.subjects.networks import Subject

TOLERANCE = 1e-4

_SMALL, _ALL_CNN = Subject("3c3d"), Subject("allcnnc")
_RESNET, _LARGE = Subject("resnet18", 64), Subject("resnet18", 224)
_ALL = (_SMALL, _ALL_CNN, _RESNET)
EXTENSIONS: dict[str, tuple[Subject, ...]] = {
    "BatchGrad": (*_ALL, _LARGE),
    "BatchL2Grad": (*_ALL, _LARGE),
    "SumGradSquared": _ALL,
    "Variance": _ALL,
    "DiagGGNMC": (*_ALL, _LARGE),
    "DiagGGNExact": (_SMALL, _ALL_CNN),
    "BatchDiagGGNMC": _ALL,
    "KFAC": (*_ALL, _LARGE),
    "KFLR": (_SMALL,),
    "SqrtGGNMC": _ALL,
}
"""Extensions, and the networks that stock has time and memory for."""

_KEY = ["extension", "network", "pixels", "batch_size"]


def cases(options: Options) -> Iterator[Case]:
    """List the extensions, each on its networks."""
    for extension, subjects in EXTENSIONS.items():
        if options.quick and extension not in ("BatchGrad", "KFAC"):
            continue
        for subject in (_SMALL,) if options.quick else subjects:
            # its hundred classes would take stock 20 s and 5 GB a pass
            is_slow = extension == "DiagGGNExact" and subject == _ALL_CNN
            batch_size = 2 if options.quick else 4 if is_slow else 16
            values = (extension, subject.network, subject.pixels, batch_size)
            key = dict(zip(_KEY, values, strict=True))
            yield Case(key, partial(_rows, extension, subject, batch_size))


def _rows(
    extension: str, subject: Subject, batch_size: int, options: Options
) -> Iterator[Row]:
    builds = contenders(extension, subject, batch_size, options.device)
    kinds = ", ".join(kind.__name__ for kind in replaced(extension, subject))
    yield from Contest(
        builds,
        baselines={"plain": builds.pop("plain")},
        tolerance=TOLERANCE,
        notes=lambda name: {"replaced": kinds},
    ).rows(options)


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Times and memory by extension and network, and what was replaced."""
    table = times(rows, _KEY, ("stock", "ours", "plain"))
    table["ours over plain"] = table["ours, ms"] / table["plain, ms"]
    found = {"Time of a backward pass": table}
    if "bytes" in rows:
        found["Memory beyond a plain pass, MiB"] = memory(rows, _KEY, "plain")
    changed = rows[rows["replaced"].fillna("") != ""]
    if len(changed):
        found["Modules that stock cannot do, replaced for all"] = changed.groupby(
            ["extension", "network"]
        )[["replaced"]].first()
    return found


def figures(rows: pd.DataFrame) -> Mapping[str, Any]:
    """Bars of the ratios of times."""
    ratios = times(rows, _KEY[:-1], ("stock", "ours"))["stock over ours"].dropna()
    table = ratios.unstack(["network", "pixels"])
    return {"ratios": bars(table, "Backward passes: stock's time over ours")}


_LARGER = "network in ('allcnnc', 'resnet18')"
_LEAST_RATIOS = {
    "BatchGrad": 3.0,
    "BatchL2Grad": 1.5,
    "DiagGGNMC": 1.3,
    "DiagGGNExact": 1.7,
    "KFAC": 2.0,
}

QUESTION = Question(
    title="How fast and lean are whole backward passes, against BackPACK's?",
    reading=(
        "A backward pass under `with backpack(extension)`, after a forward pass, which "
        "is not timed. *Plain* is one of the same network without extension. Memory is "
        "the peak of the backward pass beyond that of a plain one and beyond what the "
        "extension saves. For extensions that "
        "stock cannot backpropagate through all of ResNet-18, both run on the same "
        "network without these modules: BatchNorm in evaluation mode is folded into "
        "the convolution before it, adaptive average pooling is `AvgPool2d`."
    ),
    cases=cases,
    tables=tables,
    figures=figures,
    claims=(
        *(
            Claim(
                f"{extension} on All-CNN-C and ResNet-18: stock's time over ours",
                least_ratio(_KEY, f"{_LARGER} and extension == '{extension}'"),
                "at least",
                limit,
            )
            for extension, limit in _LEAST_RATIOS.items()
        ),
        *(
            Claim(
                f"{extension} on All-CNN-C and ResNet-18: our share of stock's memory",
                largest_share(
                    _KEY, "plain", f"{_LARGER} and extension == '{extension}'"
                ),
                "at most",
                1 / 3,
            )
            for extension in ("DiagGGNExact", "KFAC")
        ),
        Claim(
            "Every extension and network: our share of stock's memory",
            largest_share(_KEY, "plain"),
            "at most",
            1,
        ),
    ),
    preload=("experiments.contenders.backward", "torchvision"),
)
