"""What do our extensions and BackPACK's support? Runs both and compares with Jacobians.

``python -m tests.backpack.support --help`` lists the options. Writes ``docs/support.md``;
with a selection of extensions or cases, prints that part of it instead.
"""

from __future__ import annotations

import argparse
import copy
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from backpack import backpack, extend
from backpack import extensions as stock
from torch import Tensor, nn
from tqdm import tqdm

from experiments import storage
from tests.backpack import suite
from tests.backpack.run import (
    NAMES,
    extension,
    is_conv,
    layer_input,
    reference_block,
    targets,
)
from tests.backpack.support_cases import Case, Variants, tables
from tests.reference import curvature
from tn_extensions import backpack as ours

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
EXTENSIONS = (*suite.SUITE, *NAMES)
TOLERANCE = 1e-8
"""Of a saved entry, relative to its tensor's largest entry."""
LOOSE = 0.1
"""The same under autocast to bfloat16."""
TOLD = re.compile("does not have an extension|may not be meaningful")
"""Warnings of BackPACK by which users know that a savefield is missing or no good."""

Saved = dict[str, Any]
"""By parameter: a tensor, or a list of Kronecker factors."""


class Outcome(NamedTuple):
    """What came of an extension on a case.

    Args:
        verdict: ``"yes"``, ``"no (TypeError)"`` and the like, or ``"WRONG"``.
        reason: The message of the exception or the warning.
    """

    verdict: str
    reason: str = ""


NONE = Outcome("-")
"""Of an extension that BackPACK lacks."""


class Place(NamedTuple):
    """Where an outcome belongs.

    Args:
        table: Title of the table.
        row: Name of the case.
        extension: Name of the extension.
        variant: Number of dimensions; empty where there is one variant only.
    """

    table: str
    row: str
    extension: str
    variant: str


Outcomes = dict[Place, tuple[Outcome, Outcome]]
"""Ours and stock's."""


def classify(
    run: Callable[[], Saved],
    reference: Callable[[], Saved | None],
    tolerance: float = TOLERANCE,
) -> Outcome:
    """Whether what an extension saves is right.

    Args:
        run: Runs the extension.
        reference: What it should save; None where that is not defined.
        tolerance: Of an entry, relative to the largest of its tensor.

    Returns:
        ``"no"``, if it raises, or if it warns and is not right; ``"WRONG"``, if it is
        neither right nor warns.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            actual = run()
        except Exception as error:  # whatever it raises is the outcome
            return Outcome(f"no ({type(error).__name__})", str(error))
    if same(actual, reference(), tolerance):
        return Outcome("yes")
    for warning in caught:
        if TOLD.search(str(warning.message)):
            return Outcome(f"no ({warning.category.__name__})", str(warning.message))
    return Outcome("WRONG", "no exception and no warning")


def same(actual: Saved, wanted: Saved | None, tolerance: float) -> bool:
    """Whether names, shapes and values are the same."""
    if wanted is None or actual.keys() != wanted.keys():
        return False
    return all(_close(actual[key], wanted[key], tolerance) for key in wanted)


def _close(actual: Any, wanted: Any, tolerance: float) -> bool:
    if isinstance(wanted, list):
        return (
            isinstance(actual, list)
            and len(actual) == len(wanted)
            and all(_close(*pair, tolerance) for pair in zip(actual, wanted, strict=True))
        )
    if actual.shape != wanted.shape:
        return False
    # a variance may be zero but for rounding
    allowed = tolerance * wanted.abs().max() + 1e-12
    return bool((actual - wanted).abs().max() <= allowed)


def make(package: Any, name: str) -> Any:
    """An extension of ours or stock's."""
    if name in suite.SUITE:
        return suite.SUITE[name](package)
    return extension(package, name)


def run(case: Case, package: Any, name: str) -> Saved:
    """What an extension saves."""
    own = make(package, name)
    with default_dtype(case.x.dtype):  # which some of stock's modules compute in
        if case.autocast:
            return _run_under_autocast(case, own)
        (found,) = suite.saved(
            case.model, [own], case.x, use_converter=case.use_converter
        )
        return found


def _run_under_autocast(case: Case, own: Any) -> Saved:
    criterion, model = extend(nn.CrossEntropyLoss()), extend(copy.deepcopy(case.model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(model(case.x), targets(len(case.x)))
    torch.manual_seed(1)
    with backpack(own):
        loss.backward()
    return suite.names_with(model, own.savefield)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def reference(case: Case, name: str) -> Saved | None:
    """What an extension should save, in float64; None where that is not defined."""
    model = copy.deepcopy(case.model if case.twin is None else case.twin).double()
    x = case.x.double()
    if name in NAMES:
        wanted = kronecker_factors(name, model, x)
    elif couples_samples(model):
        return None
    else:
        wanted = suite.expected(name, model, x)
    if wanted is None:
        return None
    trained = {key for key, p in case.model.named_parameters() if p.requires_grad}
    return {key: value for key, value in wanted.items() if key in trained}


def couples_samples(model: nn.Module) -> bool:
    """Whether gradients of single samples do not exist."""
    norms = nn.modules.batchnorm._BatchNorm
    return any(isinstance(m, norms) and m.training for m in model.modules())


def kronecker_factors(name: str, model: nn.Module, x: Tensor) -> Saved | None:
    """Factors of all convolutions and Linears, from Jacobians."""
    if name == "KFRA" and type(model) is not nn.Sequential:
        return None  # defined by a recursion over a chain
    model.requires_grad_(False)
    result: Saved = {}
    for key, layer in model.named_modules():
        if not is_conv(layer) and not isinstance(layer, nn.Linear):
            continue
        block = reference_block(name, model, layer, x)
        z = layer_input(model, layer, x)
        if is_conv(layer):
            factors = curvature.expected(layer, z, block, "backpack")
        else:
            factors = [block, z.T @ z / len(z)]
        result[f"{key}.weight"] = factors
        if layer.bias is not None:
            result[f"{key}.bias"] = factors[:1]
    return result


def compare(case: Case, name: str) -> tuple[Outcome, Outcome]:
    """Outcomes of our extension and of stock's."""
    tolerance = LOOSE if case.autocast else TOLERANCE
    wanted = cache(partial(reference, case, name))
    own, theirs = (
        NONE
        if package is stock and name in suite.OURS_ONLY
        else classify(partial(run, case, package, name), wanted, tolerance)
        for package in (ours, stock)
    )
    return own, theirs


def survey(
    chosen: dict[str, dict[str, Variants]],
    extensions: Sequence[str] = EXTENSIONS,
    progress: bool = False,
) -> Outcomes:
    """All outcomes."""
    places = [
        (table, row, variant, make_case)
        for table, rows in chosen.items()
        for row, variants in rows.items()
        for variant, make_case in variants.items()
    ]
    result: Outcomes = {}
    for table, row, variant, make_case in tqdm(places, unit="case", disable=not progress):
        case = make_case()
        for name in extensions:
            result[Place(table, row, name, variant)] = compare(case, name)
    return result
