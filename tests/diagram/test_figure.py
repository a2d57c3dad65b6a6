"""Figures show all that the scene holds; matplotlib may be missing."""

from __future__ import annotations

import sys

import pytest

from tests.diagram.networks import CASES, conv
from tn_extensions import TensorNetwork, quantities
from tn_extensions.diagram import layout
from tn_extensions.diagram.layout import LIMIT
from tn_extensions.network import Operand, simplify

NETWORK = quantities.ggn_diagonal(conv(2), 2, 3)


@pytest.mark.parametrize("network", CASES.values(), ids=CASES.keys())
def test_figure_holds_the_scene(network: TensorNetwork) -> None:
    pytest.importorskip("matplotlib")
    scene = layout(network)
    (axes,) = network.draw().axes
    texts = sorted(text.get_text() for text in axes.texts)
    expected = [wire.label.text for wire in scene.wires]
    expected += [line for box in scene.boxes for line in box.lines]
    expected += [text.text for text in scene.texts]
    expected += [shade.label for shade in scene.shades]
    expected += ["1" for wire in scene.wires if wire.ones]
    assert texts == sorted(expected)
    markers = sum(len(wire.dots) + bool(wire.ones) for wire in scene.wires)
    assert len(axes.lines) == markers


def test_notebooks_show_pictures() -> None:
    pytest.importorskip("matplotlib")
    svg, png = NETWORK._repr_svg_(), NETWORK._repr_png_()
    assert svg is not None and svg.rstrip().endswith("</svg>")
    assert png is not None and png.startswith(b"\x89PNG")
    assert NETWORK._repr_svg_() == svg  # the same picture, the same bytes
    _, trace = simplify(quantities.kfac_reduce(conv(1), 2), trace=True)
    shown = trace._repr_svg_()
    assert shown is not None and "</svg>" in shown


def test_scale_enlarges() -> None:
    pytest.importorskip("matplotlib")
    small, large = NETWORK.draw().get_size_inches(), NETWORK.draw(scale=2)
    assert large.get_size_inches() == pytest.approx(2 * small)


def test_empty_network_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    assert TensorNetwork((), (), {})._repr_png_()


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"tn-extensions\[diagram\]"):
        NETWORK.draw()
    assert NETWORK._repr_svg_() is None
    assert NETWORK._repr_png_() is None
    assert "tikzpicture" in NETWORK.to_tikz()


def test_notebooks_do_not_draw_large_networks() -> None:
    many = TensorNetwork([Operand(f"a{j}", ()) for j in range(LIMIT + 1)], (), {})
    assert many._repr_svg_() is None
