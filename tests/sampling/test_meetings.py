"""Tables of where a pattern is read equal the pattern; phases share what they meet."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given

from tests.reference import dense
from tests.strategies import convs, examples
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.sampling.meetings import Meeting


def meetings(network: TensorNetwork) -> Iterator[Meeting]:
    """Each pattern, with positions of either operand kept."""
    x, g = network.operands
    for pattern in network.patterns:
        for kept, read in ((x, g), (g, x)):
            meeting = Meeting.of(network, pattern, kept, read)
            if meeting is not None:
                yield meeting


@given(convs())
@examples(100)
def test_reads_what_the_pattern_meets(conv: Conv) -> None:
    network = quantities.weight_vjp(conv, 1)
    found = list(meetings(network))
    assert len(found) == 2 * len(network.patterns)
    for meeting in found:
        table, phases = meeting.reads(network.sizes)
        order = meeting.pattern.indices
        kept, free, read = (
            order.index(j) for j in (meeting.kept, meeting.free, meeting.read)
        )
        hits = dense.pattern(meeting.pattern, network.sizes)
        hits = hits.transpose(kept, free, read)
        expected = np.where(hits.any(2), hits.argmax(2), -1)
        assert np.array_equal(table, expected)
        # nothing is met but in phases, which do not overlap
        inside = np.zeros_like(table, dtype=bool)
        for phase in phases:
            assert not inside[np.ix_(phase.members, phase.values)].any()
            inside[np.ix_(phase.members, phase.values)] = True
        assert not (table[~inside] >= 0).any()
        assert len(phases) <= meeting.num_phases


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
    found = {each.kept: each for each in meetings(network)}
    for index, expected in (("i1", count), ("o1", 1)):
        assert found[index].num_phases == expected
        assert len(found[index].reads(network.sizes)[1]) == expected


def test_no_meetings() -> None:
    network = quantities.conv(Conv.make(1, 1, 3, 8), 2)
    (pattern,) = network.patterns
    x, weight = network.operands
    assert Meeting.of(network, pattern, x, weight) is not None
    assert Meeting.of(network, pattern, x, x) is None
    hesse = quantities.kfac_expand(Conv.make(1, 1, 3, 8), 2)
    one, other = hesse.operands
    assert all(Meeting.of(hesse, each, one, other) is None for each in hesse.patterns)
