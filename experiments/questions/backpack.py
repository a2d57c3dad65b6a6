"""How fast and lean are whole backward passes, against BackPACK's?

A backward pass under `with backpack(extension)`, after a forward pass, which is not
timed. *Plain* is one of the same network without extension. Memory is the peak of the
backward pass beyond that of a plain one and beyond what the extension saves. For
extensions that stock cannot backpropagate through all of ResNet-18, both run on the
same network without these modules: BatchNorm in evaluation mode is folded into the
convolution before it, adaptive average pooling is `AvgPool2d`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import pandas as pd
import torch
from backpack import backpack, extend, extensions
from torch import Tensor, nn

from experiments.harness.case import Case, Contest, Options, Row
from experiments.harness.question import Question
from experiments.harness.ratios import Ratio, bars, memory, memory_claim, times
from experiments.subjects.networks import REPLACEABLE, Subject

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

_CASE = ["extension", "network", "pixels", "batch_size"]


def cases(options: Options) -> Iterator[Case]:
    """List the extensions, each on its networks."""
    for extension, subjects in EXTENSIONS.items():
        if options.quick and extension not in ("BatchGrad", "KFAC"):
            continue
        for subject in (_SMALL,) if options.quick else subjects:
            # its hundred classes would take stock 20 s and 5 GB a pass
            is_slow = extension == "DiagGGNExact" and subject == _ALL_CNN
            size = 2 if options.quick else 4 if is_slow else 16
            key = dict(zip(_CASE, (extension, *subject, size), strict=True))
            yield Case(key, _rows, extension, subject, size)


def _rows(
    extension: str, subject: Subject, batch_size: int, options: Options
) -> Iterator[Row]:
    arguments = (extension, subject, batch_size, options.device)
    kinds = ", ".join(kind.__name__ for kind in replaced(extension, subject))
    yield from Contest(
        {
            "stock": partial(Pass, "backpack.extensions", *arguments),
            "ours": partial(Pass, "tn_extensions.backpack", *arguments),
        },
        baselines={"plain": partial(Pass, None, *arguments)},
        tolerance=1e-4,
        notes=lambda name: {"replaced": kinds},
    ).rows(options)


def replaced(extension: str, subject: Subject) -> list[type[nn.Module]]:
    """List the kinds of modules that stock cannot backpropagate through.

    First-order extensions step over modules that they do not know.
    """
    stock = getattr(extensions, extension)()
    if not stock.expects_backpropagation_quantities():
        return []
    known = vars(stock)["_BackpropExtension__module_extensions"]
    candidates = REPLACEABLE.get(subject.network, ())
    return [kind for kind in candidates if kind not in known]


class Pass:
    """A backward pass, each time after a forward pass.

    Without a library, nothing is computed beside the gradient. A small pass has one
    sample.
    """

    def __init__(
        self,
        library: str | None,
        extension: str,
        subject: Subject,
        batch_size: int,
        device: torch.device,
        small: bool = False,
    ) -> None:
        self._extensions: list[Any] = []
        if library is not None:
            self._extensions.append(getattr(import_module(library), extension)())
        self.model = subject.build(replaced(extension, subject)).to(device)
        self._loss_function = extend(nn.CrossEntropyLoss())
        images, labels = subject.batch(1 if small else batch_size)
        self._images, self._labels = images.to(device), labels.to(device)
        self._loss: Tensor | None = None

    def before(self) -> None:
        """Forget former results, and run the forward pass."""
        for parameter in self.model.parameters():
            parameter.grad = None
            for extension in self._extensions:
                vars(parameter).pop(extension.savefield, None)
        self._loss = self._loss_function(self.model(self._images), self._labels)
        # Monte-Carlo samples are drawn by the backward pass
        torch.manual_seed(0)

    def __call__(self) -> dict[str, Any]:
        """Run the backward pass; return what is saved, by the parameter's name."""
        assert self._loss is not None
        with warnings.catch_warnings(), backpack(*self._extensions):
            # BackPACK's hooks do not need the gradient of the images
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            # ours says so for each BatchNorm without factors
            warnings.filterwarnings("ignore", category=UserWarning, message=".*skipped")
            self._loss.backward()
        return {
            name: getattr(parameter, extension.savefield)
            for name, parameter in self.model.named_parameters()
            for extension in self._extensions
            if hasattr(parameter, extension.savefield)
        }


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tabulate times and memory by extension and network, and what was replaced."""
    table = times(rows, _CASE, ("stock", "ours", "plain"))
    table["ours over plain"] = table["ours, ms"] / table["plain, ms"]
    found = {"Time of a backward pass": table}
    if "bytes" in rows:
        found["Memory beyond a plain pass, MiB"] = memory(rows, _CASE, "plain")
    changed = rows[rows["replaced"].fillna("") != ""]
    if len(changed):
        of_networks = changed.groupby(["extension", "network"])[["replaced"]].first()
        found["Modules that stock cannot do, replaced for all"] = of_networks
    return found


def figures(rows: pd.DataFrame) -> Mapping[str, Any]:
    """Draw bars of the ratios of times."""
    table = Ratio(_CASE[:-1]).of(rows).unstack(["network", "pixels"])
    return {"ratios": bars(table, "Backward passes: stock's time over ours")}


_ON_LARGER = "on All-CNN-C and ResNet-18"
_LARGER = "network in ('allcnnc', 'resnet18') and extension == "
_LEAST_RATIOS = {
    "BatchGrad": 3.0,
    "BatchL2Grad": 1.5,
    "DiagGGNMC": 1.3,
    "DiagGGNExact": 1.7,
    "KFAC": 2.0,
}

QUESTION = Question(
    __doc__,
    cases,
    tables,
    figures,
    claims=(
        *(
            Ratio(_CASE).claim(
                f"{extension} {_ON_LARGER}: stock's time over ours",
                least,
                f"{_LARGER} '{extension}'",
            )
            for extension, least in _LEAST_RATIOS.items()
        ),
        *(
            memory_claim(
                f"{extension} {_ON_LARGER}: our share of stock's memory",
                1 / 3,
                _CASE,
                "plain",
                f"{_LARGER} '{extension}'",
            )
            for extension in ("DiagGGNExact", "KFAC")
        ),
        memory_claim(
            "Every extension and network: our share of stock's memory",
            1,
            _CASE,
            "plain",
        ),
    ),
)
