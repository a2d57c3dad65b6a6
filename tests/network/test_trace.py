"""Traces tell which identity each step uses, and what it saves."""

from __future__ import annotations

import pytest

from tests.diagram.networks import DEFINED, conv
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.diagram.trace import strip_of
from tn_extensions.network import Trace, simplify
from tn_extensions.network.rules import dense, pair, squeeze, trim, window_sum
from tn_extensions.network.text import si

REDUCE = quantities.kfac_reduce(conv(1), 2)


@pytest.mark.parametrize("name", DEFINED)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_no_step_costs_anything(name: str, kernel_size: int) -> None:
    network = DEFINED[name](conv(1, kernel_size))
    result, trace = simplify(network, trace=True)
    at = network
    for step in trace:
        assert step.before == at
        assert step.identity
        before, after = step.cost
        assert (before, after) == (step.before.flops, step.after.flops)
        assert after <= before
        at = step.after
    assert at == result
    assert trace.network == network


def test_rules_state_their_identity() -> None:
    for rule in (dense, pair, squeeze, trim, window_sum):
        assert "=" in rule.identity or "is one node" in rule.identity


def test_rule_without_identity_may_be_used() -> None:
    def drop(network: TensorNetwork) -> TensorNetwork | None:
        return squeeze(network)

    network = quantities.kfac_reduce(conv(1), 1)
    _, trace = simplify(network, [drop], trace=True)
    assert [(step.rule, step.identity) for step in trace] == [("drop", "")]


def test_prints_rules_and_costs() -> None:
    _, trace = simplify(REDUCE, trace=True)
    text = str(trace)
    assert f"{si(REDUCE.flops)} multiply-adds" in text
    for step in trace:
        assert f"{step.rule}: {step.identity}" in text
        before, after = map(si, step.cost)
        assert f"{before} -> {after}" in text


def test_strip_shows_first_to_last() -> None:
    _, trace = simplify(REDUCE, trace=True)
    scene = strip_of(trace, columns=2)
    networks = [REDUCE, *(step.after for step in trace)]
    assert len(scene.boxes) == sum(len(network.nodes) for network in networks)
    titles = [label.text for label in scene.texts]
    for number, step in enumerate(trace, start=1):
        assert any(title.startswith(f"{number}. {step.rule}") for title in titles)
        assert step.identity in titles
    assert "as defined" in titles
    # in rows, from the left
    centers = [label.at for label in scene.texts if "multiply-adds" in label.text]
    for number, center in enumerate(centers[1:], start=1):
        before = centers[number - 1]
        assert center.y < before.y if number % 2 == 0 else center.x > before.x


def test_strip_tells_sizes_that_shrink() -> None:
    network = quantities.unfold_input(Conv.make(4, 6, 1, 9, stride=2, groups=2), 8)
    _, trace = simplify(network, [squeeze, trim], trace=True)
    titles = [label.text for label in strip_of(trace).texts]
    assert "2. trim, $i_{1}$ from 9 to 5" in titles


def test_trace_without_steps_shows_the_network() -> None:
    network = quantities.conv(conv(1), 2)
    _, trace = simplify(network, trace=True)
    assert trace == () == Trace(network)
    assert len(strip_of(trace).boxes) == len(network.nodes)


def test_draws() -> None:
    pytest.importorskip("matplotlib")
    _, trace = simplify(REDUCE, trace=True)
    (axes,) = trace.draw().axes
    assert {step.identity for step in trace} <= {t.get_text() for t in axes.texts}
