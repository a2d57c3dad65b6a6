"""All extensions against per-sample Jacobians, over all hyper-parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from backpack import extensions as stock
from backpack.custom_module.branching import Parallel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.backpack.run import classifier, images
from tests.backpack.suite import (
    EXACT,
    FIRST_ORDER,
    HESSIAN,
    OURS_ONLY,
    SAMPLED,
    SUITE,
    assert_as_jacobians,
    assert_equal,
    expected,
    saved,
)
from tests.backpack.test_factors import Upsample
from tests.backpack.test_models import ResNet, with_statistics
from tests.strategies import MODULES, examples, module_input, modules, noise_tensor
from tn_extensions import backpack as ours
from tn_extensions import memory_budget

NAMES = sorted(SUITE)
STOCKS = [name for name in NAMES if name not in OURS_ONLY]


def sandwiched(module: Any, x: Tensor) -> nn.Module:
    """Make a model that backpropagates through the module to another convolution."""
    first = type(module)(module.in_channels, module.in_channels, 1)
    return classifier(first, module, nn.Sigmoid(), x=x)


@examples(120)
@given(modules(max_dims=2), st.sampled_from(NAMES), st.sampled_from([1, 2]))
def test_all_hyper_parameters(case: Any, name: str, batch_size: int) -> None:
    module, sizes = case
    x = module_input(module, sizes, batch_size)
    assert_as_jacobians(name, sandwiched(module, x), x)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_dimensions(name: str, num_dims: int, transposed: bool) -> None:
    x = images(2, 4, *(4, 3, 2)[:num_dims])
    options: dict[str, Any] = {"groups": 2, "padding": 1, "stride": 2}
    if transposed:
        options["output_padding"] = 1
    else:
        options["padding_mode"] = "circular"
    module = MODULES[transposed][num_dims - 1](4, 2, 2, **options)
    assert_as_jacobians(name, sandwiched(module, x), x)


@examples(8)
@given(modules(max_dims=2), st.data())
def test_together_as_alone(case: Any, data: st.DataObject) -> None:
    module, sizes = case
    x = module_input(module, sizes, 2)
    model = sandwiched(module, x)
    unsampled = [name for name in NAMES if name not in SAMPLED]
    names = data.draw(st.permutations(unsampled))
    together = saved(model, [SUITE[name](ours) for name in names], x)
    for name, found in zip(names, together, strict=True):
        (alone,) = saved(model, [SUITE[name](ours)], x)
        assert_equal(found, alone, name)


def chain() -> nn.Module:
    """Make a model that stock supports: no groups, zero padding."""
    return with_statistics(
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1, stride=2),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.ConvTranspose2d(3, 2, 2, stride=2, bias=False),
            nn.Sigmoid(),
            nn.AvgPool2d(2),
            nn.Conv2d(2, 2, (1, 2)),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(8, 3),
        ).double()
    ).eval()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", STOCKS)
@pytest.mark.usefixtures("double")
def test_as_stock(name: str, reduction: str) -> None:
    x = images(3, 2, 10, 11)
    model = chain()
    if name in HESSIAN:  # stock's do not know BatchNorm
        del model[1]
    own = SUITE[name](ours)
    theirs = SUITE[name](stock)
    assert isinstance(own, type(theirs))
    assert own.savefield == theirs.savefield
    losses: list[tuple[nn.Module, Tensor | None]] = [
        (nn.CrossEntropyLoss(reduction=reduction), None),
        (nn.MSELoss(reduction=reduction), noise_tensor((3, 3))),
    ]
    for loss, y in losses:
        (actual,) = saved(model, [own], x, loss, y)
        (wanted,) = saved(model, [theirs], x, loss, y)
        assert wanted
        assert_equal(actual, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_chain(name: str) -> None:
    """Also what stock lacks, and BatchNorm's parameters."""
    assert_as_jacobians(name, chain(), images(3, 2, 10, 11))


@pytest.mark.parametrize("name", NAMES)
def test_residual_network(name: str) -> None:
    x = images(2, 2, 4, 4)
    model = with_statistics(ResNet().double()).eval()
    assert_as_jacobians(name, model, x, use_converter=True)


@pytest.mark.parametrize("name", NAMES)
def test_branches_with_curvature(name: str) -> None:
    """Square roots that start within a branch stay apart from the others."""
    x = images(2, 2, 4, 3)
    branches = Parallel(
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.Tanh(), nn.Conv2d(2, 2, 1)),
        nn.Conv2d(2, 2, 1),
        nn.Sequential(nn.Sigmoid(), nn.Conv2d(2, 2, 1), nn.Sigmoid()),
    )
    model = classifier(nn.Conv2d(2, 2, 2), nn.Tanh(), branches, nn.Tanh(), x=x)
    assert_as_jacobians(name, model, x)


def handed_on(first: bool) -> nn.Module:
    """Make a branch whose modules pass on memory that another branch waits for."""
    inner = Parallel(nn.Sequential(nn.Tanh(), nn.Identity()), nn.Tanh())
    branches = [nn.Sequential(nn.Conv2d(2, 2, 1), inner), nn.Conv2d(2, 2, 1)]
    return Parallel(*(branches if first else branches[::-1]))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", [*EXACT, *SAMPLED])
def test_branches_that_share_memory(name: str, first: bool) -> None:
    """Slopes are not multiplied into what another branch, or a savefield, has."""
    x = images(2, 2, 3, 3)
    head = [nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Tanh())]
    model = nn.Sequential(
        nn.Conv2d(2, 2, 1),
        handed_on(first),
        nn.Flatten(),
        nn.Linear(18, 3),
        Parallel(*(head if first else head[::-1])),
    ).double()
    assert_as_jacobians(name, model, x)


@pytest.mark.parametrize("name", [*EXACT, *SAMPLED, *HESSIAN, "KFLR"])
@pytest.mark.parametrize("budget", [1, 2000])
def test_in_pieces(name: str, budget: int) -> None:
    x = images(3, 2, 6, 5)
    model = classifier(
        nn.Conv2d(2, 3, 2, padding_mode="reflect", padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(3, 2, 3, stride=2),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 2, 2),
        x=x,
    )
    make = SUITE.get(name, lambda module: module.KFLR())
    (wanted,) = saved(model, [make(ours)], x)
    with memory_budget(budget):
        (actual,) = saved(model, [make(ours)], x)
    assert actual.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [*EXACT, *SAMPLED])
def test_branches_in_pieces(name: str) -> None:
    x = images(2, 2, 4, 4)
    model = with_statistics(ResNet().double()).eval()
    with memory_budget(1):
        assert_as_jacobians(name, model, x, use_converter=True)


@pytest.mark.parametrize(
    "name",
    ["BatchGrad", "SqrtGGNExact", "SqrtGGNMC", "BatchDotGrad", "GGNGramExact"],
)
@pytest.mark.parametrize("subsampling", [[1], [2, 0], [0, -1], []])
@pytest.mark.usefixtures("double")
def test_subsampling(name: str, subsampling: list[int]) -> None:
    if not subsampling and name not in FIRST_ORDER:
        pytest.skip("stock's Flatten refuses the empty batch")
    x = images(3, 2, 10, 11)
    model = chain()
    if name == "SqrtGGNMC":  # samples drawn for fewer data
        theirs, own = (m.SqrtGGNMC(2, subsampling=subsampling) for m in (stock, ours))
        (wanted,) = saved(model, [theirs], x)
    else:
        own = getattr(ours, name)(subsampling=subsampling)
        wanted = expected(name, model, x)
        for key, value in wanted.items():
            axis = 1 if name == "SqrtGGNExact" else 0
            if name == "GGNGramExact":
                split = value.unflatten(0, (-1, 3)).unflatten(2, (-1, 3))
                split = split[:, subsampling][:, :, :, subsampling]
                wanted[key] = split.flatten(0, 1).flatten(1, 2)
            else:
                index = torch.tensor(subsampling, dtype=torch.long) % 3
                value = value.index_select(axis, index)
                if name == "BatchDotGrad":
                    value = value.index_select(1, index)
                wanted[key] = value
    (actual,) = saved(model, [own], x)
    assert_equal(actual, wanted)


@pytest.mark.parametrize("by_position", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_output_size(name: str, by_position: bool) -> None:
    """It equals the output padding that leads to that size."""
    x = images(2, 2, 3, 3)
    padded = classifier(
        nn.Conv2d(2, 2, 1),
        nn.ConvTranspose2d(2, 3, 2, stride=2, output_padding=(1, 0)),
        x=x,
    )
    model = Upsample(*copy.deepcopy(padded))
    model.size, model.by_position = (7, 6), by_position
    model[1].output_padding = (0, 0)
    (actual,) = saved(model, [SUITE[name](ours)], x)
    assert_equal(actual, expected(name, padded, x))


@pytest.mark.parametrize("name", [*EXACT, "BatchGrad", "BatchDotGrad"])
def test_linear_on_sequences(name: str) -> None:
    """A Linear acts on the last of several axes."""
    x = images(2, 3, 4)
    model = nn.Sequential(
        nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), nn.Flatten(), nn.Linear(6, 3)
    ).double()
    assert_as_jacobians(name, model, x)


@pytest.mark.usefixtures("double")
def test_other_layers_of_dot_products() -> None:
    tokens = torch.tensor([[1, 0, 1], [2, 2, 0]])
    model = nn.Sequential(nn.Embedding(3, 4), nn.Flatten(), nn.Linear(12, 3)).double()
    for name in ("BatchDotGrad", "GGNGramExact"):
        assert_as_jacobians(name, model, tokens)
