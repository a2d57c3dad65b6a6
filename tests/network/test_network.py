"""Tensor networks as values, and what they evaluate to."""

from __future__ import annotations

import random
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import opt_einsum
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from tests.messages import assert_in_form
from tests.reference import dense
from tests.strategies import BATCHES, convs, examples, noise
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.network import Affine, Axis, Operand, Pattern, simplify


def vector(name: str, index: str, size: int = 3) -> Operand:
    """Make an operand of one axis."""
    return Operand(name, (Axis.of(size, (index, size)),))


def matrix(name: str, row: str, column: str, size: int = 3) -> Operand:
    """Make a square operand."""
    return Operand(name, (Axis.of(size, (row, size)), Axis.of(size, (column, size))))


def chain(length: int) -> tuple[TensorNetwork, dict[str, Any]]:
    """Product of ``length`` matrices, which has one index more."""
    nodes = [matrix(f"m{j}", f"a{j}", f"a{j + 1}", 2) for j in range(length)]
    sizes = {f"a{j}": 2 for j in range(length + 1)}
    network = TensorNetwork(nodes, [["a0"], [f"a{length}"]], sizes)
    rotation = np.array([[0.6, -0.8], [0.8, 0.6]])
    return network, {f"m{j}": rotation for j in range(length)}


@examples(30)
@given(convs(), BATCHES, st.randoms(use_true_random=False))
def test_equality_and_hash_do_not_see_the_order_of_nodes(
    conv: Conv, batch_size: int, rng: random.Random
) -> None:
    network = quantities.kfac_expand(conv, batch_size)
    nodes, sizes = list(network.nodes), list(network.sizes.items())
    rng.shuffle(nodes)
    rng.shuffle(sizes)
    other = TensorNetwork(nodes, network.output, dict(sizes))
    assert other == network
    assert hash(other) == hash(network)
    assert {network: 1}[other] == 1
    assert other.equation() == network.equation()


@examples(30)
@given(convs(), BATCHES)
def test_different_networks_differ(conv: Conv, batch_size: int) -> None:
    network = quantities.unfold_input(conv, batch_size)
    assert network != quantities.unfold_input(conv, batch_size + 1)
    assert network != network.replace(output=network.output[::-1])
    assert network != "network"


def test_networks_are_immutable() -> None:
    network = quantities.kfac_expand(Conv.make(1, 1, 3, 5), 2)
    key, value = network.equation(), hash(network)
    for field in ("nodes", "output", "sizes"):
        with pytest.raises(FrozenInstanceError):
            setattr(network, field, ())
    sizes = {"a": 3}
    other = TensorNetwork([vector("x", "a")], [["a"]], sizes)
    sizes["a"] = 4
    assert other.shape == (3,)
    network.relabel(str.upper)
    network.replace(added=network.patterns[:1])
    assert (network.equation(), hash(network)) == (key, value)


def test_structure() -> None:
    conv = Conv.make(2, 4, (3, 2), (5, 6), groups=2)
    network = quantities.conv(conv, 7)
    assert {operand.name for operand in network.operands} == {"x", "weight"}
    assert len(network.patterns) == 2
    assert network.pairs == ()
    assert set(network.summed_indices) == {"ci", "k1", "k2", "i1", "i2"}
    assert network.output_indices == ("n", "g", "co", "o1", "o2")
    assert set(network.indices) == set(network.sizes)
    assert network.shape == (7, 4, 3, 5)
    assert {type(node) for node in network.carriers("k1")} == {Operand, Pattern}


def test_sizes_of_absent_indices_are_dropped() -> None:
    network = TensorNetwork([vector("x", "a")], [["a"]], {"a": 3, "b": 4})
    assert dict(network.sizes) == {"a": 3}


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


def test_multiply_contracts_common_indices() -> None:
    left = TensorNetwork([matrix("l", "a", "b")], [["a"], ["b"]], {"a": 3, "b": 3})
    right = TensorNetwork([matrix("r", "b", "c")], [["b"], ["c"]], {"b": 3, "c": 3})
    arrays = {"l": noise((3, 3)), "r": noise((3, 3)).T}
    product = left.multiply(right, [["a"], ["c"]])
    assert_allclose(dense.evaluate(product, arrays), arrays["l"] @ arrays["r"])
    merged = left.multiply(right, [["a", "c"], ["b"]])
    expected = np.einsum("ab,bc->acb", arrays["l"], arrays["r"]).reshape(9, 3)
    assert_allclose(dense.evaluate(merged, arrays), expected)


def test_multiply_refuses_sizes_that_differ() -> None:
    one = TensorNetwork([vector("x", "a", 3)], [["a"]], {"a": 3})
    other = TensorNetwork([vector("y", "a", 4)], [["a"]], {"a": 4})
    with pytest.raises(ValueError) as caught:
        one.multiply(other, [["a"]])
    assert_in_form(caught.value, "TensorNetwork.multiply", "index 'a'")


@examples(40)
@given(convs(), BATCHES, st.sampled_from(["x", "weight"]))
def test_cut_is_the_derivative(conv: Conv, batch_size: int, name: str) -> None:
    network = quantities.conv(conv, batch_size)
    arrays = {op.name: noise(op.shape) for op in network.operands}
    (removed,) = (op for op in network.operands if op.name == name)
    axes = [[*op.indices] for op in network.operands if op is removed]
    upstream = Operand(
        "g",
        tuple(
            Axis.of(size, *((j, network.sizes[j]) for j in axis))
            for size, axis in zip(network.shape, network.output, strict=True)
        ),
    )
    gradient = noise(network.shape)
    vjp = network.replace(added=[upstream], output=[]).cut(name, axes)
    assert {operand.name for operand in vjp.operands} == {"x", "weight", "g"} - {name}
    result = dense.evaluate(vjp, arrays | {"g": gradient}).reshape(-1)
    for direction in (noise(removed.shape), np.ones(removed.shape)):
        moved = dense.evaluate(network, arrays | {name: direction})
        along = dense.operand(removed, direction, network.sizes).reshape(-1)
        assert_allclose(along @ result, (moved * gradient).sum(), atol=1e-10)


@pytest.mark.parametrize("name", ["y", "x"])
def test_cut_needs_the_operand_exactly_once(name: str) -> None:
    network = quantities.kfac_expand(Conv.make(1, 1, 3, 5), 2)
    with pytest.raises(ValueError) as caught:
        network.cut(name, [["k1"]])
    assert_in_form(caught.value, "TensorNetwork.cut", "name")


@examples(30)
@given(convs(), BATCHES)
def test_relabel_keeps_the_value(conv: Conv, batch_size: int) -> None:
    network = quantities.kfac_reduce(conv, batch_size)
    arrays = {"x": noise(network.operands[0].shape)}
    renamed = network.relabel(lambda index: f"new_{index}")
    assert all(index.startswith("new_") for index in renamed.indices)
    expected = dense.evaluate(network, arrays)
    assert_allclose(dense.evaluate(renamed, arrays), expected, atol=1e-12)
    partial = network.relabel({"n": "m"})
    assert "n" not in partial.sizes and partial.sizes["m"] == batch_size
    assert partial.relabel({"m": "n"}) == network


@pytest.mark.parametrize(
    "rename", [{"k": "l"}, {"n": "m", "i2": "j"}, {"n": "g"}, {"k1": "o1"}, {"": "a"}]
)
def test_relabel_refuses_what_would_be_another_network(rename: dict[str, str]) -> None:
    network = quantities.unfold_input(Conv.make(2, 2, 3, 5), 2)
    with pytest.raises(ValueError) as caught:
        network.relabel(rename)
    assert_in_form(caught.value, "TensorNetwork.relabel", "rename")
    with pytest.raises(ValueError) as caught:
        network.relabel(lambda index: "a")
    assert_in_form(caught.value, "TensorNetwork.relabel", "rename")
    swapped = network.relabel({"n": "g", "g": "n"})
    assert swapped.relabel({"n": "g", "g": "n"}) == network


@pytest.mark.parametrize("shared", [["o2"], ["n", "o"], "n,g", ["O1"]])
def test_copies_share_indices_that_exist(shared: Any) -> None:
    half = quantities.unfold_input(Conv.make(2, 2, 3, 5), 2)
    with pytest.raises(ValueError) as caught:
        half.times_copy(shared, half.output)
    assert_in_form(caught.value, "TensorNetwork.times_copy", "shared")


def test_copies_have_names_of_their_own() -> None:
    """Squares of squares: copies of copies would meet the copies."""
    half = TensorNetwork([vector("x", "a")], [["a"]], {"a": 3})
    outer = half.times_copy([], [["a"], ["ap"]])
    with pytest.raises(ValueError) as caught:
        outer.times_copy([], [["a"], ["ap"], ["app"]])
    assert_in_form(caught.value, "TensorNetwork.times_copy", "network")
    renamed = outer.relabel({"ap": "b"}).times_copy([], [["a"], ["b"], ["ap"], ["bp"]])
    x = np.array([1.0, 2.0, 3.0])
    expected = np.einsum("a,b,c,d->abcd", x, x, x, x)
    assert_allclose(dense.evaluate(renamed, {"x": x}), expected)


def test_replace_takes_out_each_node_once() -> None:
    twice = TensorNetwork([vector("x", "a"), vector("x", "a")], [["a"]], {"a": 3})
    once = twice.replace(removed=twice.nodes[:1])
    assert once.nodes == (vector("x", "a"),)
    array = noise((3,))
    assert_allclose(dense.evaluate(twice, {"x": array}), array**2)


@pytest.mark.parametrize("length", [1, 25, 51, 80, 150])
def test_any_number_of_indices_renders_and_evaluates(length: int) -> None:
    network, arrays = chain(length)
    equation = network.equation()
    assert len(set(equation) - set(",->")) == length + 1
    operands = [array for array, _ in dense.nodes(network, arrays)]
    result = opt_einsum.contract(equation, *map(torch.from_numpy, operands))
    expected = np.linalg.matrix_power(arrays["m0"], length)
    assert_allclose(result.numpy(), expected)


@examples(30)
@given(convs(), BATCHES)
def test_equation_evaluates_to_the_network(conv: Conv, batch_size: int) -> None:
    network = quantities.kfac_expand(conv, batch_size)
    arrays = {"x": noise(network.operands[0].shape)}
    operands = [array for array, _ in dense.nodes(network, arrays)]
    result = opt_einsum.contract(network.equation(), *operands)
    expected = dense.evaluate(network, arrays)
    assert_allclose(result.reshape(network.shape), expected, atol=1e-10)


def test_a_pattern_alone_is_a_network() -> None:
    pattern = Pattern("i", Affine((("o", 1), ("k", 1)), -1))
    sizes = {"i": 4, "o": 4, "k": 3}
    network = TensorNetwork([pattern], [["i"], ["o", "k"]], sizes)
    expected = pattern.dense(sizes).swapaxes(1, 2).reshape(4, 12)
    assert_allclose(dense.evaluate(network, {}), expected)


def differentiated(conv: Conv, batch_size: int) -> tuple[TensorNetwork, dict[str, Any]]:
    """Make a convolution with its operands."""
    network = quantities.conv(conv, batch_size)
    operands = {o.name: noise(o.shape) for o in network.operands}
    return network, operands


@examples(40)
@given(convs(max_dims=2), BATCHES, st.sampled_from(["x", "weight"]))
def test_products_with_the_jacobian(conv: Conv, batch_size: int, name: str) -> None:
    network, operands = differentiated(conv, batch_size)
    jacobian = network.jacobian(name)
    assert jacobian.shape == (*network.shape, *operands[name].shape)
    matrix = dense.evaluate(jacobian, operands).reshape(-1, operands[name].size)

    tangent, cotangent = noise(operands[name].shape) + 1, noise(network.shape)
    jvp = network.jvp(name, "tangent")
    others = {other: array for other, array in operands.items() if other != name}
    assert jvp.shape == network.shape
    result = dense.evaluate(jvp, {**others, "tangent": tangent})
    assert_allclose(result.ravel(), matrix @ tangent.ravel(), atol=1e-10)

    vjp = network.vjp(name, "cotangent")
    assert vjp.shape == operands[name].shape
    result = dense.evaluate(vjp, {**others, "cotangent": cotangent})
    assert_allclose(result.ravel(), cotangent.ravel() @ matrix, atol=1e-10)
    # a convolution is linear in each operand
    value = dense.evaluate(network, operands)
    assert_allclose(matrix @ operands[name].ravel(), value.ravel(), atol=1e-10)


@examples(20)
@given(convs(max_dims=1), BATCHES)
def test_second_derivatives(conv: Conv, batch_size: int) -> None:
    network, operands = differentiated(conv, batch_size)
    second = network.jacobian("weight").jacobian("x")
    assert second.shape == (*network.shape, *conv.weight_shape, *operands["x"].shape)
    assert not second.operands
    tensor = dense.evaluate(second, {}).reshape(
        -1, operands["weight"].size, operands["x"].size
    )
    value = np.einsum(
        "ywx,w,x->y", tensor, operands["weight"].ravel(), operands["x"].ravel()
    )
    assert_allclose(value, dense.evaluate(network, operands).ravel(), atol=1e-10)
    other = network.jacobian("x").jacobian("weight")
    swapped = dense.evaluate(other, {}).reshape(
        -1, operands["x"].size, operands["weight"].size
    )
    assert_allclose(swapped.swapaxes(1, 2), tensor)


@pytest.mark.parametrize("method", ["jacobian", "vjp", "jvp"])
@pytest.mark.parametrize("name", ["x", "nothing"])
def test_derivatives_need_the_operand_exactly_once(method: str, name: str) -> None:
    network = quantities.kfac_expand(Conv.make(2, 2, 3, 5), 2)
    arguments = (name,) if method == "jacobian" else (name, "vector")
    with pytest.raises(ValueError) as caught:
        getattr(network, method)(*arguments)
    assert_in_form(caught.value, f"TensorNetwork.{method}", "name")


@pytest.mark.parametrize("method", ["jacobian", "vjp"])
def test_derivatives_by_a_part_of_an_operand_are_refused(method: str) -> None:
    whole = quantities.conv(Conv.make(2, 2, 1, 5, stride=2), 2)
    part = simplify(whole)
    arguments = ("x",) if method == "jacobian" else ("x", "vector")
    assert getattr(whole, method)(*arguments)
    with pytest.raises(ValueError) as caught:
        getattr(part, method)(*arguments)
    assert_in_form(caught.value, f"TensorNetwork.{method}", "axis 2 of operand 'x'")
