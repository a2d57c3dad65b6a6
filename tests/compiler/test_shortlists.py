"""Shortlists: near sizes price few candidates and choose as if they priced all."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tests.reference import dense
from tests.strategies import noise_tensor
from tn_extensions import Conv, TensorNetwork, functional, memory_budget, quantities
from tn_extensions.compiler import Plan, plan, register, unregister
from tn_extensions.compiler.candidate import Candidate, Target
from tn_extensions.compiler.plan import forget_plans
from tn_extensions.compiler.shortlists import varying_indices
from tn_extensions.network import simplify

# the package's attribute of this name is the function
module = importlib.import_module("tn_extensions.compiler.plan")

SIZES = [(28, 28), (26, 30), (30, 26), (24, 33), (32, 32), (25, 25)]
LAYERS: list[dict[str, Any]] = [
    {},
    {"stride": 2},
    {"groups": 8},
    {"kernel_size": 1, "padding": 0},
    {"transposed": True, "stride": 2},
]
QUANTITIES: list[tuple[str, tuple[Any, ...]]] = [
    ("kfac_expand", ()),
    ("kfac_reduce", ()),
    ("per_sample_grad_norm", (None,)),
    ("ggn_diagonal", (3,)),
]


def network(
    size: tuple[int, ...],
    batch_size: int = 8,
    quantity: str = "kfac_expand",
    arguments: tuple[Any, ...] = (),
    channels: int = 8,
    **options: Any,
) -> TensorNetwork:
    """Make a quantity of an ordinary layer, for inputs of some size."""
    options = {"kernel_size": 3, "padding": 1} | options
    conv = Conv.make(channels, 8, input_size=size, **options)
    result: TensorNetwork = getattr(quantities, quantity)(conv, batch_size, *arguments)
    return result


@pytest.fixture
def seen() -> Iterator[list[TensorNetwork]]:
    """Networks that a primitive that knows none was asked about."""
    found: list[TensorNetwork] = []

    def idle(network: TensorNetwork, target: Target) -> list[Candidate]:
        found.append(network)
        return []

    register(idle)
    yield found
    unregister(idle)


@pytest.mark.parametrize("options", LAYERS)
@pytest.mark.parametrize(("quantity", "arguments"), QUANTITIES)
def test_near_sizes_price_few_candidates(
    seen: list[TensorNetwork],
    quantity: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    first, *others = SIZES
    given: dict[str, Any] = {"quantity": quantity, "arguments": arguments, **options}
    plan(network(first, **given))
    at_first = len(seen)
    seen.clear()
    for size in others:
        plan(network(size, **given))
    plan(network(first, batch_size=11, **given))
    # all six of them together; blocks may differ more than what they are cut from
    assert len(seen) < at_first


@pytest.mark.parametrize(
    "changed",
    [
        {"size": (60, 28)},
        {"size": (57, 57)},
        {"size": (28, 1)},
        {"batch_size": 17},
        {"channels": 9},
        {"kernel_size": 5, "padding": 2},
        {"padding": 2},
        {"stride": 2},
    ],
)
def test_other_networks_price_all(
    seen: list[TensorNetwork], changed: dict[str, Any]
) -> None:
    plan(network((28, 28)))
    seen.clear()
    plan(network(**{"size": (28, 28)} | changed))
    assert seen


@pytest.mark.parametrize("options", LAYERS)
@pytest.mark.parametrize(("quantity", "arguments"), QUANTITIES)
def test_the_choice_is_that_of_all_candidates(
    quantity: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    given: dict[str, Any] = {"quantity": quantity, "arguments": arguments, **options}

    def fresh(size: tuple[int, int]) -> Plan:
        forget_plans()
        return plan(network(size, **given))

    expected = [fresh(size) for size in SIZES]
    forget_plans()
    for size, other in zip(SIZES, expected, strict=True):
        found = plan(network(size, **given))
        assert found.candidate.label == other.candidate.label


@pytest.mark.parametrize("budget", [2**14, 2**17, 2**19, 2**21])
@pytest.mark.parametrize("quantity", ["kfac_expand", "kfac_reduce"])
def test_the_budget_is_kept(quantity: str, budget: int) -> None:
    sizes = [(20, 20), (22, 22), (26, 26), (20, 28), (14, 14)]
    with memory_budget(budget):
        excess = []
        for size in sizes:
            forget_plans()
            least = plan(network(size, 32, quantity)).cost.peak
            excess.append(max(4 * least - budget, 0))
        forget_plans()
        for size, allowed in zip(sizes, excess, strict=True):
            chosen = plan(network(size, 32, quantity))
            assert max(4 * chosen.cost.peak - budget, 0) <= allowed


def test_what_does_not_fit_is_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = network((20, 20), 32)
    forget_plans()
    given = plan(wanted).target
    (large,) = {
        source
        for source, way in module._candidates(wanted, simplify(wanted), given)
        if way.name.startswith("pixel")
    }
    forget_plans()
    monkeypatch.setattr(module._shortlists, "find", lambda *given: frozenset({large}))
    held = plan(wanted).cost.peak
    assert plan(wanted).candidate.name.startswith("pixel")
    with memory_budget(2 * held):
        chosen = plan(wanted)
    assert not chosen.candidate.name.startswith("pixel")
    assert 4 * chosen.cost.peak <= 2 * held
    forget_plans()


def test_values_at_sizes_that_vary() -> None:
    forget_plans()
    for size in [(8, 8), (7, 9), (10, 8)]:
        for options in ({}, {"stride": 2}):
            conv = Conv.make(2, 2, 3, size, padding=1, **options)
            x = noise_tensor((3, 2, *size))
            expected = torch.from_numpy(dense.factor(conv, x.numpy(), "expand"))
            assert_close(functional.kfac_expand(x, conv), expected)


def test_new_primitives_forget_shortlists(
    seen: list[TensorNetwork],
) -> None:
    plan(network((28, 28)))
    seen.clear()
    forget_plans()
    plan(network((26, 30)))
    assert seen


def test_data_and_space_vary_channels_and_groups_do_not() -> None:
    found = varying_indices(network((6, 6)))
    assert {"n", "i1", "i2", "o1", "o2", "i1p"} <= found
    assert not {"g", "ci", "cip"} & found
