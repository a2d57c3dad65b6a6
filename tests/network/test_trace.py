"""Traces tell which identity each step uses, and what it saves."""

from __future__ import annotations

import pytest

from tests.diagram.networks import DEFINED, conv
from tn_extensions import quantities
from tn_extensions.network import simplify
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


def test_prints_rules_and_costs() -> None:
    _, trace = simplify(REDUCE, trace=True)
    text = str(trace)
    assert f"{si(REDUCE.flops)} multiply-adds" in text
    for step in trace:
        assert f"{step.rule}: {step.identity}" in text
        before, after = map(si, step.cost)
        assert f"{before} -> {after}" in text
