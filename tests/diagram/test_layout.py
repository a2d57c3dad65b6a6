"""A picture shows all of a network, and nothing covers anything else."""

from __future__ import annotations

from typing import get_args

import pytest

from tests.diagram.networks import CASES, DEFINED, conv
from tests.messages import assert_in_form
from tn_extensions import TensorNetwork, quantities
from tn_extensions.diagram import layout, names
from tn_extensions.diagram.label import bold, math
from tn_extensions.diagram.layout import LIMIT
from tn_extensions.network import Operand, Pair, Pattern, Selection, build

every_case = pytest.mark.parametrize("network", CASES.values(), ids=CASES.keys())


def test_all_quantities_are_among_the_cases() -> None:
    assert set(DEFINED) == set(get_args(quantities.Quantity))


@every_case
def test_nodes_have_boxes_of_their_shape(network: TensorNetwork) -> None:
    scene = layout(network)
    assert [box.number for box in scene.boxes] == list(range(len(network.nodes)))
    kinds: dict[type, str]
    kinds = {Operand: "operand", Pattern: "pattern", Pair: "pair", Selection: "pattern"}
    for box, node in zip(scene.boxes, network.nodes, strict=True):
        assert box.kind == kinds[type(node)]
        if isinstance(node, Operand):
            assert box.lines[0].startswith(f"${bold(node.name)}")
        elif isinstance(node, Pattern) and len(box.lines) > 1:
            # says when it is one
            for index in node.indices:
                assert math(index) in box.lines[1]


def test_is_deterministic() -> None:
    network = quantities.ggn_diagonal(conv(3), 2, 3)
    other = TensorNetwork(network.nodes[::-1], network.output, network.sizes)
    assert layout(network) == layout(other)


def test_halves_are_shaded_and_parts_may_be() -> None:
    network = quantities.kfac_expand(conv(2), 2)
    half, copy = layout(network).shades
    assert (half.label, copy.label) == ("half", "copy")
    assert half.high.x < copy.low.x
    scene = layout(network, shade={"unfolded input": ["x", "P1", "P2"]})
    (shade,) = scene.shades
    inside = {
        name
        for name, box in zip(names(network), scene.boxes, strict=True)
        if shade.low.x < box.center.x < shade.high.x
    }
    assert shade.label == "unfolded input"
    assert inside == {"x", "P1", "P2"}
    assert layout(network, shade={}).shades == ()


def test_caption_is_the_result() -> None:
    network = quantities.kfac_expand(conv(1), 2)
    assert str(list(network.shape)) in layout(network).texts[0].text
    assert layout(network, caption=False).texts == ()


def test_unknown_node_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        layout(quantities.conv(conv(1), 2), shade={"part": ["y"]})
    assert_in_form(caught.value, "layout", "shade")


def test_empty_network() -> None:
    scene = layout(TensorNetwork((), (), {}))
    assert (scene.boxes, scene.wires) == ((), ())
    assert scene.width > 0
    assert scene.height > 0


def test_large_networks() -> None:
    sizes = {f"a{j}": 2 for j in range(LIMIT + 2)}
    sizes["b"] = 2

    def chain(length: int) -> TensorNetwork:
        return build(
            {f"m{j}": [f"a{j}", f"a{j + 1}", "b"] for j in range(length)},
            ["b", "a0", f"a{length}"],
            {j: s for j, s in sizes.items() if j == "b" or int(j[1:]) <= length},
        )

    assert len(layout(chain(LIMIT)).boxes) == LIMIT
    with pytest.raises(ValueError) as caught:
        layout(chain(LIMIT + 1))
    assert_in_form(caught.value, "layout", "network")
