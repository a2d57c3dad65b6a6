"""Malformed networks are refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.messages import assert_in_form
from tests.network.test_network import vector
from tn_extensions import TensorNetwork
from tn_extensions.network import Affine, Axis, Operand, Pair, Pattern


@pytest.mark.parametrize(
    ("output", "sizes", "argument"),
    [
        ([["a"]], {}, "sizes"),
        ([["b"]], {"a": 3, "b": 3}, "output"),
        ([["a"], ["a"]], {"a": 3}, "output"),
        ([["a"]], {"a": 4}, "axis 0 of operand 'x'"),
    ],
)
def test_inconsistent_networks_are_refused(
    output: Any, sizes: dict[str, int], argument: str
) -> None:
    with pytest.raises(ValueError) as caught:
        TensorNetwork([vector("x", "a")], output, sizes)
    assert_in_form(caught.value, "TensorNetwork", argument)


def test_reading_before_the_start_is_refused() -> None:
    operand = Operand("x", (Axis(Affine((("a", 1),), -1), 3),))
    with pytest.raises(ValueError, match="read within its 3 entries"):
        TensorNetwork([operand], [["a"]], {"a": 3})


def test_sizes_are_integers() -> None:
    size: Any = 3.0
    with pytest.raises(TypeError) as caught:
        TensorNetwork([vector("x", "a")], [["a"]], {"a": size})
    assert_in_form(caught.value, "TensorNetwork", "size of index 'a' of operand 'x'")


def test_patterns_carry_an_index_once() -> None:
    nodes = [vector("x", "i"), Pattern("i", Affine((("i", 1),)))]
    with pytest.raises(ValueError) as caught:
        TensorNetwork(nodes, [["i"]], {"i": 3})
    assert_in_form(caught.value, "TensorNetwork", "pattern of index 'i'")


def test_patterns_of_pairs_are_checked() -> None:
    nodes = [
        *(vector(name, name) for name in "xy"),
        Pair(*(Pattern(i, Affine(((i, 1), ("o", 1)))) for i in "xy"), "o", 3),
    ]
    with pytest.raises(ValueError) as caught:
        TensorNetwork(nodes, [[]], {"x": 3, "y": 3})
    assert_in_form(caught.value, "TensorNetwork", "pattern of index 'x'")
