"""Expected values of each extension, from per-sample Jacobians."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from backpack import backpack, extend
from torch import Tensor, nn
from torch.testing import assert_close

from tests.backpack.run import targets
from tests.reference import per_sample
from tests.reference.per_sample import Tensors
from tn_extensions import backpack as ours

SAMPLES = 2
"""Monte-Carlo samples."""

Make = Callable[[Any], Any]

FIRST_ORDER: dict[str, Make] = {
    "BatchGrad": lambda m: m.BatchGrad(),
    "BatchL2Grad": lambda m: m.BatchL2Grad(),
    "SumGradSquared": lambda m: m.SumGradSquared(),
    "Variance": lambda m: m.Variance(),
    "BatchDotGrad": lambda m: m.BatchDotGrad(),
}
EXACT: dict[str, Make] = {
    "DiagGGNExact": lambda m: m.DiagGGNExact(),
    "BatchDiagGGNExact": lambda m: m.BatchDiagGGNExact(),
    "SqrtGGNExact": lambda m: m.SqrtGGNExact(),
    "GGNGramExact": lambda m: m.GGNGramExact(),
}
SAMPLED: dict[str, Make] = {
    "DiagGGNMC": lambda m: m.DiagGGNMC(SAMPLES),
    "BatchDiagGGNMC": lambda m: m.BatchDiagGGNMC(SAMPLES),
    "SqrtGGNMC": lambda m: m.SqrtGGNMC(SAMPLES),
    "GGNGramMC": lambda m: m.GGNGramMC(SAMPLES),
}
HESSIAN: dict[str, Make] = {
    "DiagHessian": lambda m: m.DiagHessian(),
    "BatchDiagHessian": lambda m: m.BatchDiagHessian(),
}
SUITE = FIRST_ORDER | EXACT | SAMPLED | HESSIAN
OURS_ONLY = ("BatchDotGrad", "GGNGramExact", "GGNGramMC")


def names_with(parameters: nn.Module, savefield: str) -> Tensors:
    """Savefields by the name of the parameter, where there is one."""
    found = {n: getattr(p, savefield, None) for n, p in parameters.named_parameters()}
    return {name: value for name, value in found.items() if value is not None}


def saved(
    model: nn.Module,
    extensions: Sequence[Any],
    x: Tensor,
    loss: nn.Module | None = None,
    y: Tensor | None = None,
    use_converter: bool = False,
    **options: Any,
) -> list[Tensors]:
    """Return what extensions save in one backward pass, on a copy of the model."""
    y = targets(len(x)) if y is None else y
    criterion = extend(nn.CrossEntropyLoss() if loss is None else copy.deepcopy(loss))
    twin = extend(copy.deepcopy(model), use_converter=use_converter)
    with warnings.catch_warnings():
        # the hooks need no gradient of the input
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        warnings.filterwarnings("ignore", "The Kronecker factors stored in the weight")
        torch.manual_seed(1)
        with backpack(*extensions, **options):
            criterion(twin(x), y).backward()
    return [names_with(twin, extension.savefield) for extension in extensions]


def loss_root(model: nn.Module, x: Tensor, loss: nn.Module, y: Tensor, mc: int) -> Any:
    """Compute BackPACK's square root of the loss Hessian, ``[V, N, C]``.

    Args:
        model: The model.
        x: Its input.
        loss: The loss.
        y: Labels.
        mc: Number of Monte-Carlo samples; 0 for the exact one.
    """
    criterion: Any = extend(copy.deepcopy(loss))
    logits = model(x).detach().requires_grad_()
    criterion(logits, y)
    torch.manual_seed(1)
    derivatives: Any = ours.DiagGGNExact()._known[type(loss)]
    derivatives = derivatives.derivatives
    if mc:
        return derivatives.sqrt_hessian_sampled(criterion, None, None, mc_samples=mc)
    return derivatives.sqrt_hessian(criterion, None, None)


def expected(
    name: str,
    model: nn.Module,
    x: Tensor,
    loss: nn.Module | None = None,
    y: Tensor | None = None,
) -> Tensors:
    """Compute what an extension should save."""
    loss = nn.CrossEntropyLoss() if loss is None else loss
    y = targets(len(x)) if y is None else y
    model = copy.deepcopy(model)
    if name in HESSIAN:
        size = len(x) if loss.reduction == "mean" else 1
        diagonals = per_sample.hessian_diagonals(
            model, x, lambda z, n: loss(z, y[n : n + 1]) / size
        )
        return {
            key: d.sum(0) if name == "DiagHessian" else d
            for key, d in diagonals.items()
        }
    if name in FIRST_ORDER:
        found = per_sample.gradients(model, x, lambda z: loss(z, y))
        return {key: _of_gradients(name, g) for key, g in found.items()}
    root = loss_root(model, x, loss, y, SAMPLES if name in SAMPLED else 0)
    found = per_sample.square_roots(model, x, root)
    kind = name.removesuffix("Exact").removesuffix("MC")
    return {key: _of_root(kind, j) for key, j in found.items()}


def _of_gradients(name: str, g: Tensor) -> Tensor:
    flat = g.flatten(1)
    return {
        "BatchGrad": lambda: g,
        "BatchL2Grad": lambda: flat.square().sum(1),
        "SumGradSquared": lambda: g.square().sum(0),
        "Variance": lambda: g.var(0, correction=0),
        "BatchDotGrad": lambda: flat @ flat.T,
    }[name]()


def _of_root(kind: str, j: Tensor) -> Tensor:
    rows = j.flatten(0, 1).flatten(1)
    return {
        "DiagGGN": lambda: j.square().sum((0, 1)),
        "BatchDiagGGN": lambda: j.square().sum(0),
        "SqrtGGN": lambda: j,
        "GGNGram": lambda: rows @ rows.T,
    }[kind]()


def assert_equal(actual: Tensors, wanted: Tensors, at: str = "", **close: Any) -> None:
    """Check that names, shapes and values are equal."""
    assert actual.keys() == wanted.keys(), at
    close = {"rtol": 1e-8, "atol": 1e-10} | close
    for name, value in wanted.items():
        assert_close(actual[name], value, msg=f"{at} {name} ".__add__, **close)


def assert_as_jacobians(name: str, model: nn.Module, x: Tensor, **options: Any) -> None:
    """Our extension saves what per-sample Jacobians say."""
    (actual,) = saved(model, [SUITE[name](ours)], x, **options)
    options.pop("use_converter", None)
    assert_equal(actual, expected(name, model, x, **options), name)
