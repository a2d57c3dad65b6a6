"""Where boxes are: on the side of the half that they are of."""

from __future__ import annotations

import pytest

from tests.diagram.networks import conv
from tests.diagram.test_layout import every_case
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.diagram import layout, names


@every_case
def test_the_copy_mirrors_the_half(network: TensorNetwork) -> None:
    scene = layout(network, shade={})
    found = dict(zip(names(network), scene.boxes, strict=True))
    middle = (
        min(box.center.x for box in scene.boxes)
        + max(box.center.x for box in scene.boxes)
    ) / 2
    copies = [name for name in found if name.endswith("'")]
    operands = [operand.name for operand in network.operands]
    assert bool(copies) == (len(operands) > len({*operands}))
    if len(operands) % 2:  # one of them meets but one half
        return
    for name in copies:
        box, copy = found[name[:-1]], found[name]
        assert copy.center.y == pytest.approx(box.center.y)
        assert copy.center.x - middle == pytest.approx(middle - box.center.x, abs=0.01)
        assert copy.center.x > box.center.x


@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_spatial_dimensions_are_stacked(num_dims: int) -> None:
    network = quantities.conv(conv(num_dims), 2)
    found = dict(zip(names(network), layout(network).boxes, strict=True))
    patterns = [found[f"P{j + 1}"].center for j in range(num_dims)]
    assert len({center.x for center in patterns}) == 1
    assert sorted(patterns, key=lambda center: -center.y) == patterns
    assert found["x"].center.x < patterns[0].x < found["weight"].center.x


@pytest.mark.parametrize("kept", [["k1", "k2"], ["o1", "o2"], ["k1", "k2", "o1", "o2"]])
@pytest.mark.parametrize("transposed", [False, True])
def test_patterns_belong_to_the_half_of_their_operand(
    kept: list[str], transposed: bool
) -> None:
    """Also where all of a pattern's indices are shared but that of its operand."""
    conv = Conv.make(4, 6, 3, (9, 9), groups=2, transposed=transposed)
    half = quantities.unfold_input(conv, 2)
    network = half.times_copy(["n", "g", "ci", *kept], [("n",)])
    for node, name in zip(network.nodes, names(network), strict=True):
        position = "o" if transposed else "i"
        own = [index for index in node.indices if index.startswith(position)]
        if not set(own) <= set(kept):
            assert name.endswith("'") == any(index.endswith("p") for index in own)
