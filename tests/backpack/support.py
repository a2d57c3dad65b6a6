"""The support table: run our extensions and BackPACK's, and compare with Jacobians.

``python -m tests.backpack.support --help`` lists the options. Writes
``docs/support.md``; with a selection of extensions or cases, prints these instead.
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
from typing import Any

import torch
from backpack import backpack, extend
from backpack import extensions as stock
from torch import Tensor, nn
from tqdm import tqdm

from tests.backpack import run, suite, support_page
from tests.backpack.support_cases import Branched, Case, Variants, tables
from tests.backpack.support_page import LACKING, WRONG, YES, Outcome, Outcomes, Place
from tests.reference import diagonals
from tn_extensions import backpack as ours

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
APPROXIMATIONS = ("DiagHessianBL89", "DiagHessianHesScale")
EXTENSIONS = (*suite.SUITE, *APPROXIMATIONS, *run.NAMES)
TOLERANCE = 1e-8
"""Of a saved entry, relative to its tensor's largest entry."""
LOOSE = 0.1
"""The same under autocast to bfloat16."""
ROUNDING = 1e-12
"""Absolute: the variance of one gradient is zero."""
TOLD = re.compile("does not have an extension|may not be meaningful")
"""Warnings of BackPACK that a savefield is missing, or that it is no good."""

Saved = dict[str, Any]
"""By parameter: a tensor, or a list of Kronecker factors."""


def classify(
    extension: Callable[[], Saved],
    reference: Callable[[], Saved | None],
    tolerance: float = TOLERANCE,
) -> Outcome:
    """Tell whether an extension saves correct values.

    Args:
        extension: Runs the extension.
        reference: What it should save; None where that is not defined.
        tolerance: Of an entry, relative to the largest of its tensor.

    Returns:
        No, if it raises, or if it warns and is not correct; wrong, if it is silently
        not correct.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            actual = extension()
        except Exception as error:  # whatever it raises is the outcome
            return Outcome(f"no ({type(error).__name__})", str(error))
    if same(actual, reference(), tolerance):
        return YES
    for warning in caught:
        message = str(warning.message)
        if TOLD.search(message):
            return Outcome(f"no ({warning.category.__name__})", message)
    return WRONG


def same(actual: Saved, wanted: Saved | None, tolerance: float = TOLERANCE) -> bool:
    """Tell whether names, shapes and values are equal."""
    if wanted is None or actual.keys() != wanted.keys():
        return False
    return all(_same_value(actual[key], wanted[key], tolerance) for key in wanted)


def _same_value(actual: Any, wanted: Any, tolerance: float) -> bool:
    if isinstance(wanted, list):
        return len(actual) == len(wanted) and all(
            _same_value(*pair, tolerance) for pair in zip(actual, wanted, strict=True)
        )
    if actual.shape != wanted.shape:
        return False
    error, size = (actual - wanted).abs().max(), wanted.abs().max()
    return bool(error <= tolerance * size + ROUNDING)


def saved(case: Case, package: Any, name: str) -> Saved:
    """Return what an extension of ours or stock's saves."""
    if name in suite.SUITE:
        extension = suite.SUITE[name](package)
    else:
        extension = run.extension(package, name)
    with default_dtype(case.x.dtype):  # stock's pools compute in the default dtype
        if case.autocast:
            return _saved_under_autocast(case, extension)
        (found,) = suite.saved(
            case.model, [extension], case.x, use_converter=case.use_converter
        )
        return found


def _saved_under_autocast(case: Case, extension: Any) -> Saved:
    criterion, model = extend(nn.CrossEntropyLoss()), extend(copy.deepcopy(case.model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(model(case.x), run.targets(len(case.x)))
    torch.manual_seed(1)
    with backpack(extension):
        loss.backward()
    return suite.names_with(model, extension.savefield)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def expected(case: Case, name: str) -> Saved | None:
    """Compute what an extension should save, in float64; None if it is not defined."""
    model = copy.deepcopy(case.model if case.twin is None else case.twin).double()
    x = case.x.double()
    wanted: Saved | None
    if name in run.NAMES:
        wanted = kronecker_factors(name, model, x)
    elif couples_samples(model):
        wanted = None
    elif name in APPROXIMATIONS:
        wanted = approximation(name, model, x)
    else:
        wanted = suite.expected(name, model, x)
    if wanted is None:
        return None
    trained = {key for key, p in case.model.named_parameters() if p.requires_grad}
    return {key: value for key, value in wanted.items() if key in trained}


def approximation(name: str, model: Any, x: Tensor) -> Saved:
    """Compute diagonals that are backpropagated by dense Jacobians."""
    loss, y, z = nn.CrossEntropyLoss(), run.targets(len(x)), model(x).detach()
    h = diagonals.of_loss(loss, z, y, elementwise=name == "DiagHessianBL89")
    g = torch.func.grad(lambda z: loss(z, y))(z)
    residual = [1] if isinstance(model, Branched) else []
    return diagonals.backpropagated(model.requires_grad_(False), x, h, g, residual)


def couples_samples(model: nn.Module) -> bool:
    """Tell whether the gradient of a sample is not defined."""
    norm = nn.modules.batchnorm._BatchNorm
    return any(isinstance(m, norm) and m.training for m in model.modules())


def kronecker_factors(name: str, model: nn.Module, x: Tensor) -> Saved | None:
    """Compute the factors of all layers, from Jacobians."""
    if name == "KFRA" and type(model) is not nn.Sequential:
        return None  # a recursion over a chain of modules
    model.requires_grad_(False)
    result: Saved = {}
    for key, layer in model.named_modules():
        if not run.is_layer(layer):
            continue
        wanted = run.reference(name, model, layer, x)
        for parameter, _ in layer.named_parameters():
            result[f"{key}.{parameter}"] = wanted[parameter]
    return result


def compare(case: Case, name: str) -> tuple[Outcome, Outcome]:
    """Outcomes of our extension and of stock's."""
    wanted = cache(partial(expected, case, name))
    tolerance = LOOSE if case.autocast else TOLERANCE

    def outcome(package: Any) -> Outcome:
        return classify(partial(saved, case, package, name), wanted, tolerance)

    lacking = name in (*suite.OURS_ONLY, *APPROXIMATIONS)
    return outcome(ours), LACKING if lacking else outcome(stock)


def survey(
    chosen: dict[str, dict[str, Variants]],
    extensions: Sequence[str] = EXTENSIONS,
    disable: bool | None = True,
) -> Outcomes:
    """Run extensions on cases, of which each run gets a new one.

    Args:
        chosen: Cases by table, row and variant.
        extensions: Names of extensions.
        disable: Of the progress bar; None disables it where there is no terminal.
    """
    cases = [
        (table, row, variant, make_case)
        for table, rows in chosen.items()
        for row, variants in rows.items()
        for variant, make_case in variants.items()
    ]
    result: Outcomes = {}
    for table, row, variant, make_case in tqdm(cases, unit="case", disable=disable):
        for name in extensions:
            place = Place(table, row, name, variant)
            result[place] = compare(make_case(), name)
    return result


INTRODUCTION = """# BackPACK: what is supported

Extensions of `tn_extensions.backpack` (ours), and of BackPACK {backpack} (stock), with
torch {torch}. [What stock gets wrong](correctness.md) sums this page up. Made by

```bash
python -m tests.backpack.support
```

which runs both and compares what they save with Jacobians. A cell is *ours / stock*:

* yes: correct.
* no: raises the exception in brackets; or warns, and saves something else or nothing.
* **WRONG**: neither raises nor warns, but saves something wrong.
* -: there is no such extension.

A row holds for one, two and three dimensions, or for those in brackets. A cell names
the dimensions where they differ.

With groups, where stock raises, our `KFAC`, `KFLR` and `KFRA` have one pair of factors
per group. BatchNorm's scale and shift have one factor each, `[C, C]`, their block of
the GGN. In train mode, BatchNorm couples the samples, so that the gradient of a sample
is not defined.

*Correct* means that the savefields of all parameters are there and differ from the
reference by at most {tolerance} of the largest entry (under autocast: {loose}). The
models, in float64, are a convolution (for sequences, a `Linear`), the layer in
question, a nonlinearity, `Flatten`, `Linear` and `CrossEntropyLoss`. The first layer
shows whether the layer in question backpropagates correctly. The reference is made of
Jacobians and Hessians of torch's own modules, by `torch.func` and autograd, with
BackPACK's Monte-Carlo samples."""


def introduction(backpack_version: str, torch_version: str) -> str:
    """Write the introduction of the page."""
    return INTRODUCTION.format(
        backpack=backpack_version,
        torch=torch_version,
        tolerance=f"{TOLERANCE:g}".replace("e-0", "e-"),
        loose=LOOSE,
    )


def render(outcomes: Outcomes) -> str:
    """Write the page."""
    found = support_page.cells(outcomes)
    backpack_version = version("backpack-for-pytorch")
    torch_version = torch.__version__.split("+")[0]
    lines = introduction(backpack_version, torch_version).splitlines()
    for title in dict.fromkeys(place.table for place in outcomes):
        lines += ["", f"## {title}", "", *support_page.table_of(found, title)]
    lines += ["", "## What ours does not support", "", *support_page.reasons(outcomes)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or print what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.backpack.support", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add(
        "--extensions", nargs="+", choices=EXTENSIONS, metavar="NAME", help="only these"
    )
    add("--cases", nargs="+", metavar="TEXT", help="only cases whose name has it")
    add("--threads", type=int, default=1)
    add("--output", type=Path, default=PAGE)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    chosen = {
        table: {
            row: variants
            for row, variants in rows.items()
            if not args.cases or any(text in row for text in args.cases)
        }
        for table, rows in tables().items()
    }
    page = render(survey(chosen, args.extensions or EXTENSIONS, disable=None))
    if args.extensions or args.cases:
        print(page)
    else:
        args.output.write_text(page, encoding="utf-8")
        print(args.output)


if __name__ == "__main__":
    main()
