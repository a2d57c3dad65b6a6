"""A common part of networks, evaluated once, whole or in chunks."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.compiler.test_joint import CONV, N, apart, networks, planned, tensors
from tn_extensions import Conv, quantities
from tn_extensions.compiler import plan
from tn_extensions.compiler.sharing import Cuts, Sharing, member


@pytest.mark.parametrize("index", ["n", "v", "co"])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_chunks(index: str, size: int) -> None:
    """Samples are no chunks of a Gram matrix, channels are."""
    asked = networks()
    part = quantities.per_sample_grad(CONV, N, 2)
    cuts = Cuts.along(part, index)
    assert cuts is not None
    found = {k: member(one, part, index) for k, one in enumerate(asked)}
    members = {k: one for k, one in found.items() if one is not None}
    assert (3 in members) == (index == "co") and 4 not in members
    assert {0, 1, 2} <= {*members}
    sharing = Sharing(cuts, size, members, lambda one: plan(one, torch.float64))
    expected = apart(asked)
    for number, result in sharing.run(tensors(asked)).items():
        assert_close(result, expected[number])


def test_budget() -> None:
    """Parts that exceed half of it are cut; plans on their own have all of it."""
    conv = Conv.make(32, 32, 3, (5, 5), padding=1)
    asked = networks(conv, 8)[:4]
    part_bytes = 2 * 8 * 32 * 32 * 9 * 8
    for budget in (4 * part_bytes, part_bytes):
        found = planned(asked, budget)
        assert found.sharings
        assert all(one.peak * 8 <= budget for one in found.sharings)
    halves = [one for one in found.sharings if one.part.network not in asked]
    assert halves and all(one.number > 1 for one in halves)
