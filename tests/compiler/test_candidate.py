"""Candidates: costs that add up, labels, and values where there is no function."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.candidate import (
    Candidate,
    Operation,
    Tensors,
    as_defined,
    wants_definition,
)
from tn_extensions.compiler.cost import Cost


def double(tensors: Tensors, into: Accumulator) -> None:
    into.put(into.out, 2 * tensors["x"])


def test_costs_add_up() -> None:
    rows = (
        Operation("product", "2 x 3", Cost(seconds=2.0, flops=6)),
        Operation("copy", "3", Cost(seconds=0.5), times=4),
    )
    candidate = Candidate("double", rows, 7, double)
    assert candidate.cost.seconds == 4.0
    assert candidate.cost.flops == 6
    assert candidate.cost.peak == 7
    assert candidate.label == "double; 1 product 2 x 3; 4 copy 3"


def test_value_without_a_function() -> None:
    candidate = Candidate("double", (), 0, double)
    assert not candidate.is_differentiable
    made = candidate.with_value((3,))
    x = torch.rand(3)
    assert_close(made.value({"x": x}), 2 * x)
    assert not made.is_differentiable  # it writes into a tensor
    differentiable = Candidate("double", (), 0, double, lambda t: 2 * t["x"])
    assert differentiable.is_differentiable
    assert differentiable.with_value((3,)) is differentiable


def test_primitives_are_shown_definitions_if_they_ask() -> None:
    def one(network: object, target: object) -> list[Candidate]:
        return []

    def other(network: object, target: object) -> list[Candidate]:
        return []

    assert as_defined(one) is one
    assert wants_definition(one) and not wants_definition(other)
