"""Blocks: a network in nested chunks, its unfolded operand read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from tests.compiler.candidates import layer, target
from tests.network.rules.identities import arrays_of
from tests.reference import dense
from tn_extensions import Conv, quantities
from tn_extensions.compiler.candidate import Candidate, Target
from tn_extensions.compiler.primitives.blocks import (
    Cut,
    Place,
    Stage,
    Unfold,
    blocks,
    can_cut,
    patterned_sides,
)
from tn_extensions.network import TensorNetwork

NETWORK = quantities.per_sample_grad(layer(groups=2), 5, 3)
"""Axes ``v``, ``n``, ``(g, co)``, ``ci``, ``k1``, ``k2``."""


@pytest.mark.parametrize(
    "cuts",
    [(), (("n", 1),), (("n", 2), ("v", 2)), (("v", 1), ("n", 5)), (("n", 4), ("g", 1))],
)
@pytest.mark.parametrize("unfolded", [None, 0, 1, 2])
def test_blocks_make_up_the_whole(
    cuts: Sequence[tuple[str, int]], unfolded: int | None
) -> None:
    stages: list[Stage] = [Cut(*cut) for cut in cuts]
    if unfolded is not None:
        stages.insert(unfolded, Unfold("x"))
    parts = blocks(NETWORK, stages, target())
    arrays = arrays_of(NETWORK)
    expected = dense.evaluate(NETWORK, arrays)
    found, places = np.full(NETWORK.shape, np.nan), []
    axes = {"v": 0, "n": 1, "g": 2}

    def put(place: Place, value: Tensor) -> None:
        where = [slice(None)] * found.ndim
        for index, (start, length) in place.items():
            where[axes[index]] = slice(start, start + length)
        found[tuple(where)] = value.numpy()
        places.append(dict(place))

    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    parts.each(tensors, {}, put)
    assert_allclose(found, expected, atol=1e-10)
    assert all(set(place) == {index for index, _ in cuts} for place in places)
    assert len(places) == parts.number
    assert np.prod(parts.shape) >= np.prod(NETWORK.shape) / parts.number
    assert bool(parts.operations)
    assert parts.peak >= np.prod(NETWORK.shape) // max(parts.number, 1) // 2


def test_patterns_are_read_where_it_is_said() -> None:
    reads: list[TensorNetwork] = []

    def planned(network: TensorNetwork, given: Target) -> Candidate:
        way = target().planner(network, given)
        compute = way.value

        def value(tensors: dict[str, Tensor]) -> Tensor:
            reads.append(network)
            return compute(tensors)

        return replace(way, compute=value)

    stages = [Cut("n", 1), Unfold("x"), Cut("v", 1)]
    parts = blocks(NETWORK, stages, replace(target(), planner=planned))
    arrays = arrays_of(NETWORK)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    parts.each(tensors, {}, lambda place, value: None)
    unfolded = [one for one in reads if [o.name for o in one.operands] == ["x"]]
    assert len(unfolded) == 5 and len(reads) == 5 + 15


def test_what_can_be_cut() -> None:
    conv = Conv.make(4, 6, 3, (6, 6), groups=2)
    network = quantities.per_sample_grad(conv, 5, 3)
    found = {index for index in ("v", "n", "g", "co", "ci") if can_cut(network, index)}
    assert found == {"v", "n", "g"}  # channels lie behind the groups
    assert can_cut(quantities.per_sample_grad(layer(), 5), "co")


def test_either_operand_can_be_unfolded() -> None:
    names = [side.operand.name for side in patterned_sides(NETWORK)]
    assert sorted(names) == ["g", "x"]
    # the one with fewer entries first
    many = quantities.per_sample_grad(layer(), 2, 50)
    assert [side.operand.name for side in patterned_sides(many)][0] == "x"
