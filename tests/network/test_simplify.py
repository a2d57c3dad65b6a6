"""The fixed point of all rules: its trace, its value and its cost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.network.rules.identities import (
    FLAT_NETWORKS,
    NETWORKS,
    assert_same_value,
    optimal_flops,
)
from tests.sampling.estimates import narrowed_networks
from tests.strategies import examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.network import simplify
from tn_extensions.network.rules import pair
from tn_extensions.network.simplify import RULES


@examples(60)
@given(NETWORKS)
def test_trace_replays(network: TensorNetwork) -> None:
    result, steps = simplify(network, trace=True)
    rules = {rule.__name__: rule for rule in RULES}
    current = network
    for step in steps:
        assert step.before == current
        current = rules[step.rule](current)
        assert current == step.after
        assert str(step).startswith(f"{step.rule}: ")
    assert current == result == simplify(network)
    assert simplify(result) == result
    assert simplify(result, trace=True)[1] == ()


@examples(60)
@given(NETWORKS)
def test_value_is_kept(network: TensorNetwork) -> None:
    assert_same_value(network, simplify(network))


@examples(60)
@given(narrowed_networks())
def test_value_of_sampled_networks_is_kept(network: TensorNetwork) -> None:
    """Of positions that are data, nothing is known."""
    simplified = simplify(network)
    assert simplified.selections == network.selections
    assert_same_value(network, simplified)


@examples(60)
@given(NETWORKS, st.randoms(use_true_random=False))
def test_value_is_kept_in_random_order(
    network: TensorNetwork, rng: random.Random
) -> None:
    rules = [*RULES, pair]
    current, names = network, []
    for _ in range(200):
        applied = [(rule.__name__, rule(current)) for rule in rules]
        choices = [(name, result) for name, result in applied if result is not None]
        if not choices:
            break
        name, current = rng.choice(choices)
        names.append(name)
    else:
        raise AssertionError(f"no end: {names}")
    assert_same_value(network, current, names)


@examples(30)
@given(NETWORKS, st.permutations(RULES))
def test_any_order_of_rules_ends_at_the_same_value(network, order) -> None:
    assert_same_value(network, simplify(network, order))


@examples(40)
@given(FLAT_NETWORKS)
def test_best_contraction_never_gets_dearer(network: TensorNetwork) -> None:
    costs = [optimal_flops(network)]
    costs += [optimal_flops(step.after) for step in simplify(network, trace=True)[1]]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("num_dims", [1, 2, 3, 4])
@pytest.mark.parametrize("quantity", [quantities.conv, quantities.kfac_expand])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 2, "stride": 3},
    ],
)
def test_dense_convolutions_lose_their_patterns(quantity, options, num_dims) -> None:
    sizes = {"kernel_size": (options["kernel_size"],) * num_dims}
    conv = Conv.make(2, 2, input_size=(6,) * num_dims, **(options | sizes))
    assert simplify(quantity(conv, 2)).patterns == ()


def test_reduce_needs_no_output_positions() -> None:
    network = simplify(quantities.kfac_reduce(Conv.make(3, 3, (3, 3), (8, 8)), 2))
    assert not any(index.startswith("o") for index in network.indices)


def test_other_rules_may_be_given() -> None:
    network = quantities.kfac_expand(Conv.make(2, 2, 3, 8), 2)
    assert simplify(network, ()) == network
    assert len(simplify(network, (pair,)).pairs) == 1
