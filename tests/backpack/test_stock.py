"""Our values are stock's wherever stock is right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backpack import extensions as stock
from torch import Tensor, nn

from tests.backpack.run import (
    MC_SAMPLES,
    NAMES,
    assert_as_stock,
    assert_same,
    classifier,
    extension,
    images,
    run,
    run_copy,
)
from tests.strategies import MODULES
from tn_extensions import backpack as ours

SIZES = {1: (11,), 2: (8, 7), 3: (5, 4, 5)}


@pytest.mark.parametrize("name", NAMES)
def test_is_a_stock_extension(name: str) -> None:
    own, theirs = extension(ours, name), extension(stock, name)
    assert isinstance(own, type(theirs))
    assert own.savefield == theirs.savefield == name.lower()
    assert own.approx == "backpack"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "bias": False},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 2, "padding": 1, "dilation": 2},
    ],
    ids=["plain", "strided", "dilated"],
)
def test_convolutions(
    name: str, num_dims: int, transposed: bool, options: dict[str, Any]
) -> None:
    make = MODULES[transposed][num_dims - 1]
    x = images(3, 2, *SIZES[num_dims])
    if transposed:
        x = x[(..., *[slice(3)] * num_dims)]
    first, second = make(2, 3, **options), make(3, 2, kernel_size=2)
    assert_as_stock(name, classifier(first, nn.Sigmoid(), second, x=x), x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "between",
    [
        nn.ReLU,
        nn.Tanh,
        lambda: nn.MaxPool2d(2),
        lambda: nn.MaxPool2d((3, 2), stride=2, padding=1),
        lambda: nn.AvgPool2d(2),
        lambda: nn.AvgPool2d(3, stride=2, padding=1),
        lambda: nn.ZeroPad2d((1, 0, 2, 1)),
        lambda: nn.Dropout(0.5),
    ],
)
@pytest.mark.usefixtures("double")
def test_other_modules(name: str, between: Callable[[], nn.Module]) -> None:
    x = images(4, 2, 7, 6)
    model = classifier(
        nn.Conv2d(2, 3, 3), between(), nn.Conv2d(3, 2, (1, 2)), nn.ReLU(), x=x
    )
    assert_as_stock(name, model, x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses(name: str, reduction: str) -> None:
    x = images(4, 2, 6, 6)
    model = classifier(nn.Conv2d(2, 3, 3), nn.ReLU(), x=x)
    losses: list[tuple[nn.Module, Tensor]] = [
        (nn.CrossEntropyLoss(reduction=reduction), torch.tensor([0, 2, 1, 1])),
    ]
    if name != "KFRA":  # stock's MSELoss starts KFRA in float32
        losses.append((nn.MSELoss(reduction=reduction), images(4, 3)))
    for loss, y in losses:
        assert_as_stock(name, model, x, y, loss)


def test_mean_squared_error_with_kfra() -> None:
    x, y = images(4, 2, 6, 6), images(4, 3)
    model = classifier(nn.Conv2d(2, 3, 3), nn.ReLU(), x=x)
    single = model.float()
    wanted = run_copy(single, stock.KFRA(), x.float(), y=y.float(), loss=nn.MSELoss())
    actual = run_copy(model.double(), ours.KFRA(), x, y=y, loss=nn.MSELoss())
    for name, factors in wanted.items():
        for own, theirs in zip(actual[name], factors, strict=True):
            assert own.dtype == torch.float64
            torch.testing.assert_close(own.float(), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["KFAC", "KFLR"])
def test_binary_classification(name: str) -> None:
    x = images(4, 2, 6, 6)
    body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 1))
    y = torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
    assert_as_stock(name, body.double(), x, y, nn.BCEWithLogitsLoss())


def test_several_samples_are_drawn_like_stocks() -> None:
    x = images(4, 2, 6, 6)
    model = classifier(nn.Conv2d(2, 3, 3), nn.ReLU(), x=x)
    for mc_samples in (1, 5):
        assert mc_samples != MC_SAMPLES
        own = run_copy(model, ours.KFAC(mc_samples), x)
        assert_same(own, run_copy(model, stock.KFAC(mc_samples), x))
        expanded = run_copy(model, ours.KFAC(mc_samples, approx="expand"), x)
        assert not torch.allclose(expanded["0.weight"][0], own["0.weight"][0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight", "0"])
def test_frozen_parameters(name: str, frozen: str) -> None:
    x = images(3, 2, 6, 6)
    model = classifier(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2), x=x)
    for key, parameter in model.named_parameters():
        if key.startswith(frozen):
            parameter.requires_grad_(False)
    assert_as_stock(name, model, x)
    assert frozen not in run_copy(model, extension(ours, name), x)


def left_on(model: nn.Module) -> dict[str, set[str]]:
    """Names of the attributes of all modules and parameters."""
    modules = {name: set(vars(module)) for name, module in model.named_modules()}
    parameters = {name: set(vars(p)) for name, p in model.named_parameters()}
    return modules | parameters


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("double")
def test_leaves_on_the_model_what_stock_leaves(name: str) -> None:
    x = images(3, 2, 6, 6)
    model = classifier(
        nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.ConvTranspose2d(3, 2, 2), x=x
    )
    theirs, own = copy.deepcopy(model), model
    run(theirs, extension(stock, name), x)
    run(own, extension(ours, name), x)
    assert left_on(own) == left_on(theirs)
