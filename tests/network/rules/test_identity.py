"""Rules say which identity they use."""

from __future__ import annotations

from tests.diagram.networks import conv
from tn_extensions import TensorNetwork, quantities
from tn_extensions.network import simplify
from tn_extensions.network.rules import dense, pair, squeeze, trim, window_sum


def test_rules_state_their_identity() -> None:
    for rule in (dense, pair, squeeze, trim, window_sum):
        assert "=" in rule.identity or "is one node" in rule.identity


def test_rule_without_identity_may_be_used() -> None:
    def drop(network: TensorNetwork) -> TensorNetwork | None:
        return squeeze(network)

    network = quantities.kfac_reduce(conv(1), 1)
    _, trace = simplify(network, [drop], trace=True)
    assert [(step.rule, step.identity) for step in trace] == [("drop", "")]
