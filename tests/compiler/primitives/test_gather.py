"""Gather: sums over sampled positions of one operand, on all convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.compiler.candidates import assert_all_evaluate, matched, target
from tests.network.rules.identities import arrays_of
from tests.reference import dense
from tests.sampling.estimates import narrowed_networks
from tests.strategies import convs, examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.compiler import plan
from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.primitives.gather import Reads, gather
from tn_extensions.network import simplify
from tn_extensions.sampling.narrowed import narrow


@examples(200)
@given(narrowed_networks(), st.sampled_from([1, 30, 2**20]))
def test_sampled_networks(network: TensorNetwork, at_once: int) -> None:
    with patch.dict(gather.__globals__, _AT_ONCE=at_once):
        assert_all_evaluate(gather, network)
        assert_all_evaluate(gather, simplify(network))


def test_matches_what_is_sampled() -> None:
    assert matched(gather) == {"sampled"}
    network = quantities.weight_vjp(Conv.make(2, 3, 3, (6, 6), padding=1), 2)
    for counts, number in (("i1", 1), ("o1", 1), ("i1 o1", 2), ("i1 o2", 2), ("n", 0)):
        sampled = narrow(network, tuple((index, 2) for index in counts.split()))
        # by each operand of which positions are sampled
        assert len(list(gather(sampled, target()))) == number


def reads(network: TensorNetwork) -> Iterator[Reads]:
    """Each pattern, with positions of either operand summed."""
    x, g = network.operands
    for pattern in network.patterns:
        for summed, read in ((x, g), (g, x)):
            found = Reads.of(network, pattern, summed, read)
            if found is not None:
                yield found


@given(convs())
@examples(60)
def test_phases_read_what_the_pattern_meets(conv: Conv) -> None:
    network = quantities.weight_vjp(conv, 1)
    found = list(reads(network))
    assert len(found) == 2 * len(network.patterns)
    for each in found:
        order = each.pattern.indices
        axes = [order.index(j) for j in (each.summed, each.free, each.read)]
        hits = dense.pattern(each.pattern, network.sizes).transpose(axes)
        expected = np.where(hits.any(2), hits.argmax(2), -1)
        # nothing is met but in phases, which do not overlap
        table = np.full_like(expected, -1)
        seen = np.zeros_like(expected)
        phases = list(each.phases(network.sizes, {}))
        for phase in phases:
            values = np.arange(network.sizes[each.free])[phase.values]
            place = np.ix_(phase.members, values)
            table[place] = phase.table
            seen[place] += 1
        assert np.array_equal(table, expected)
        assert seen.max(initial=0) <= 1
        assert len(phases) <= each.num_phases


@pytest.mark.parametrize(
    ("stride", "dilation", "kernel_size", "count"),
    [
        (1, 1, 3, 1),
        (2, 1, 3, 2),
        (3, 1, 3, 3),
        (2, 2, 3, 1),
        (4, 2, 5, 2),
        (1, 3, 2, 1),
    ],
)
def test_phases(stride: int, dilation: int, kernel_size: int, count: int) -> None:
    conv = Conv.make(1, 1, kernel_size, 40, stride=stride, dilation=dilation)
    network = quantities.weight_vjp(conv, 1)
    found = {each.summed: each for each in reads(network)}
    for index, expected in (("i1", count), ("o1", 1)):
        assert found[index].num_phases == expected
        assert len(list(found[index].phases(network.sizes, {}))) == expected


def test_other_patterns_are_not_read() -> None:
    network = quantities.conv(Conv.make(1, 1, 3, 8), 2)
    (pattern,) = network.patterns
    x, weight = network.operands
    assert Reads.of(network, pattern, x, weight) is not None
    assert Reads.of(network, pattern, x, x) is None
    hesse = quantities.kfac_expand(Conv.make(1, 1, 3, 8), 2)
    one, other = hesse.operands
    assert all(Reads.of(hesse, each, one, other) is None for each in hesse.patterns)


CONV = Conv.make(64, 64, 3, (56, 56), padding=1)


def flops(**counts: int) -> float:
    network = narrow(quantities.weight_vjp(CONV, 8), tuple(counts.items()))
    return min(each.cost.flops for each in gather(network, target()))


def test_estimates_cost_their_share() -> None:
    whole = flops(i1=56)
    assert flops(i1=28, i2=28) == pytest.approx(whole / 4, rel=0.05)
    assert flops(i1=28, n=4, ci=16) == pytest.approx(whole / 16, rel=0.05)


def test_is_chosen_where_it_saves_work() -> None:
    network = narrow(quantities.weight_vjp(CONV, 8), (("i1", 14), ("i2", 14)))
    assert plan(network).candidate.name == "gather"


@given(st.data())
@examples(20)
def test_pieces_in_half_precision_are_summed_in_single(data: st.DataObject) -> None:
    conv = Conv.make(2, 3, 3, (24, 24), padding=1)
    counts = data.draw(st.sampled_from([(("i1", 12), ("i2", 12)), (("o1", 12),)]))
    network = narrow(quantities.weight_vjp(conv, 8), counts)
    arrays = {name: abs(array) for name, array in arrays_of(network).items()}
    expected = torch.from_numpy(dense.evaluate(network, arrays))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    half = {
        name: own.half() if own.is_floating_point() else own
        for name, own in tensors.items()
    }
    for candidate in gather(network, target()):
        out = torch.empty(network.shape, dtype=torch.float16)
        candidate.run(half, Accumulator(out, 1.0, fresh=True))
        # summed in half precision, terms of one would be lost beyond 2048
        assert torch.allclose(out.double(), expected, rtol=2e-3)
