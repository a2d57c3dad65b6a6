"""Strips of pictures: what each step of a simplification does."""

from __future__ import annotations

import pytest

from tests.diagram.networks import conv
from tests.network.test_trace import REDUCE
from tn_extensions import Conv, quantities
from tn_extensions.diagram.trace import strip_of
from tn_extensions.network import Trace, simplify
from tn_extensions.network.rules import squeeze, trim


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
