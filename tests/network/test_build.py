"""Networks from scratch: what is most likely a mistake is caught, and named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from tests.messages import assert_in_form
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.network import Axis, Operand, Pattern, build

CONV = Conv.make(4, 6, 3, 7, stride=2, padding=1, groups=2)
SIZES = {"n": 5, "g": 2, "ci": 2, "co": 3, "i1": 7, "k1": 3, "o1": 4}
WINDOW = Pattern.of("i1", {"o1": 2, "k1": 1}, start=-1)
GIVEN: dict[str, Any] = {
    "operands": {
        "x": ["n", ("g", "ci"), "i1"],
        "weight": [("g", "co"), "ci", "k1"],
    },
    "output": ["n", ("g", "co"), "o1"],
    "sizes": SIZES,
    "patterns": [WINDOW],
}


def test_convolution_from_scratch_is_the_quantity() -> None:
    shapes = {"x": (5, 4, 7), "weight": (6, 2, 3)}
    assert build(**GIVEN, shapes=shapes) == quantities.conv(CONV, 5)


def test_operand_may_occur_twice() -> None:
    sizes = {"i": 2, "j": 3, "l": 2}
    gram = build([("a", ["i", "j"]), ("a", ["l", "j"])], ["i", "l"], sizes)
    a = torch.rand(2, 3)
    assert torch.allclose(gram.evaluate(a=a), a @ a.T)


def test_sums_are_named() -> None:
    summed = build({"a": ["i", "j"]}, ["i"], {"i": 2, "j": 3}, summed=["j"])
    a = torch.rand(2, 3)
    assert torch.allclose(summed.evaluate(a=a), a.sum(1))


@pytest.mark.parametrize(
    ("change", "argument", "named"),
    [
        ({"sizes": {**SIZES, "k1": 2}}, "axis 2 of operand 'weight'", "k1"),
        ({"shapes": {"x": (5, 4, 8)}}, "axis 2 of operand 'x'", "i1"),
        ({"shapes": {"x": (5, 5, 7)}}, "axis 1 of operand 'x'", "'g', 'ci'"),
        ({"shapes": {"x": (5, 7)}}, "operand 'x'", "[5, 7]"),
        ({"shapes": {"y": (5, 7)}}, "shapes", "'y'"),
        ({"sizes": {j: s for j, s in SIZES.items() if j != "ci"}}, "sizes", "'x'"),
        ({"sizes": {**SIZES, "m": 2}}, "sizes", "'m'"),
        ({"output": ["n", ("g", "co")]}, "index 'o1' of pattern 'i1'", "o1"),
        ({"output": [("g", "co"), "o1"]}, "index 'n' of operand 'x'", "n"),
        ({"patterns": []}, "output", "'o1'"),
        ({"output": ["n", ("g", "co"), "o1", "m"]}, "sizes", "'m'"),
        ({"output": ["n", "n", ("g", "co"), "o1"]}, "output", "'n'"),
        ({"summed": ["n"]}, "summed", "'n'"),
        ({"operands": {**GIVEN["operands"], "y": ["n", "n"]}}, "operand 'y'", "'n'"),
    ],
)
def test_mistakes_are_caught(change: dict[str, Any], argument: str, named: str) -> None:
    arguments = {**GIVEN, "shapes": {"weight": (6, 2, 3)}, **change}
    if "shapes" not in change and "k1" not in str(change.get("sizes", "k1")):
        arguments.pop("shapes")
    with pytest.raises(ValueError) as caught:
        build(**arguments)
    owner = "TensorNetwork" if str(caught.value).startswith("Tensor") else "build"
    assert_in_form(caught.value, owner, argument)
    assert named in str(caught.value)


def vector(name: str, index: str, size: int) -> Operand:
    return Operand(name, (Axis.of(size, (index, size)),))


@pytest.mark.parametrize(
    ("nodes", "output", "sizes", "argument"),
    [
        ([vector("a", "i", 2)], (), {}, "sizes"),
        ([vector("a", "i", -1)], (), {"i": -1}, "size of index 'i' of operand 'a'"),
        (
            [vector("a", "i", 2), vector("a", "j", 3)],
            (),
            {"i": 2, "j": 3},
            "operand 'a'",
        ),
        ([vector("a", "i", 2)], ("j",), {"i": 2, "j": 2}, "output"),
        ([vector("a", "i", 2)], ("i",), {"i": 3}, "axis 0 of operand 'a'"),
    ],
)
def test_malformed_networks_are_refused(
    nodes: list[Operand], output: tuple[str, ...], sizes: dict[str, int], argument: str
) -> None:
    with pytest.raises(ValueError) as caught:
        TensorNetwork(nodes, [output], sizes)
    assert_in_form(caught.value, "TensorNetwork", argument)
    assert "'a'" in str(caught.value) or "'j'" in str(caught.value)


def test_resize() -> None:
    large = Conv.make(8, 12, 3, 7, stride=2, padding=1, groups=2)
    sizes = {"n": 9, "ci": 4, "co": 6}
    assert quantities.conv(CONV, 5).resize(sizes) == quantities.conv(large, 9)
    wide = Conv.make(4, 6, 3, 9, stride=2, padding=1, groups=2)
    resized = quantities.kfac_expand(CONV, 5).resize({"i1": 9, "i1p": 9, "o1": 5})
    assert resized == quantities.kfac_expand(wide, 5)
    with pytest.raises(ValueError) as caught:
        quantities.conv(CONV, 5).resize({"m": 2})
    assert_in_form(caught.value, "TensorNetwork.resize", "sizes")


def test_times_copy() -> None:
    half = quantities.unfold_input(CONV, 5).replace(output=[("g",), ("ci", "k1")])
    factor = half.times_copy({"n", "g", "o1"}, [*half.output, ("cip", "k1p")])
    assert factor == quantities.kfac_expand(CONV, 5)


def test_vmap() -> None:
    gradient = quantities.weight_vjp(CONV, 5)
    many = gradient.vmap("g", "v", 3)
    assert many.shape == (3, *gradient.shape)
    x, g = torch.rand(5, 4, 7), torch.rand(3, 5, 6, 4)
    each = torch.stack([gradient.evaluate(x=x, g=one) for one in g])
    assert torch.allclose(many.evaluate(x=x, g=g), each, rtol=1e-4)
    for name, index, argument in (("g", "n", "index"), ("y", "v", "name")):
        with pytest.raises(ValueError) as caught:
            gradient.vmap(name, index, 3)
        assert_in_form(caught.value, "TensorNetwork.vmap", argument)


def test_flops_are_those_of_matrix_products() -> None:
    sizes = {"i": 2, "j": 30, "k": 4, "l": 5}
    operands = {"a": ["i", "j"], "b": ["j", "k"], "c": ["k", "l"]}
    product = build(operands, ["i", "l"], sizes)
    assert product.flops == 2 * 30 * 4 + 2 * 4 * 5
    assert TensorNetwork((), (), {}).flops == 0


def test_pattern_of() -> None:
    dense = WINDOW.dense(SIZES)
    assert_allclose(dense.sum((1, 2)), np.array([1, 2, 1, 2, 1, 2, 1]) * 1.0)
