"""Networks as einsum expressions, evaluated by other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import opt_einsum
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from tests.diagram.networks import CASES, DEFINED, DERIVED, exhausted
from tests.messages import assert_in_form
from tests.network.rules.identities import arrays_of
from tests.reference import dense
from tests.strategies import convs, examples
from tn_extensions import Conv, TensorNetwork, functional, quantities
from tn_extensions.network import Given, Pattern, build, simplify

FORMS: dict[str, Callable[[TensorNetwork], TensorNetwork]] = {
    "defined": lambda network: network,
    "simplified": simplify,
    "paired": exhausted,
}
CONV = Conv.make(4, 6, 3, (7, 6), padding=1, groups=2)


def assert_exports(network: TensorNetwork) -> None:
    """Check that the expression has the network's value in several libraries."""
    arrays = arrays_of(network)
    expected = dense.evaluate(network, arrays)
    equation, operands, shape = network.export(**arrays)
    assert set(equation) <= {*"->,", *map(opt_einsum.get_symbol, range(52))}
    # else numpy loops over all indices at once where an intermediate is large
    by_numpy = np.einsum(equation, *operands, optimize=("greedy", 2**40))
    by_torch = torch.einsum(equation, *map(torch.as_tensor, operands)).numpy()
    by_others = opt_einsum.contract(equation, *operands)
    for result in (by_numpy, by_torch, by_others):
        assert_allclose(result.reshape(shape), expected, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DEFINED)
@examples(8)
@given(convs(max_dims=2))
def test_quantities_of_any_convolution(name: str, form: str, conv: Conv) -> None:
    assert_exports(FORMS[form](DEFINED[name](conv)))


@pytest.mark.parametrize("name", [f"{name} 1d" for name in DERIVED] + ["two layers"])
def test_other_networks(name: str) -> None:
    assert_exports(CASES[name])


@examples(40)
@given(convs(), st.sampled_from([*FORMS]))
def test_three_dimensions(conv: Conv, form: str) -> None:
    for define in (quantities.unfold_input, quantities.fold_output, quantities.conv):
        assert_exports(FORMS[form](define(conv, 2)))


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("strides", [(3, 1), (4, 2), (2, 1), (1, 1), (-1, 1)])
def test_operands_that_are_read_in_parts(strides: tuple[int, int], start: int) -> None:
    network = build(
        {"a": ["i", "n"]},
        "jn",
        {"i": 14, "n": 2, "j": 3, "k": 2},
        [Pattern.of("i", {"j": strides[0], "k": strides[1]}, start + 3)],
        summed="k",
    )
    assert_exports(network)
    assert_exports(simplify(network))


def test_what_is_not_given_is_described() -> None:
    x, weight = torch.rand(2, 4, 7, 6), torch.rand(CONV.weight_shape)
    equation, operands, shape = quantities.conv(CONV, 2).export(np.float32)
    named = [operand for operand in operands if isinstance(operand, Given)]
    assert {one.name: one.shape for one in named} == {
        "x": (2, 2, 2, 7, 6),
        "weight": (2, 3, 2, 3, 3),
    }
    assert len(operands) == 4 and shape == (2, 6, 7, 6)
    tensors = {"x": x, "weight": weight}
    filled = [
        tensors[one.name].reshape(one.shape)
        if isinstance(one, Given)
        else torch.from_numpy(one)
        for one in operands
    ]
    result = torch.einsum(equation, *filled).reshape(shape)
    torch.testing.assert_close(result, functional.conv(x, weight, CONV))


def test_simplified_operands_are_slices() -> None:
    network = simplify(quantities.unfold_input(Conv.make(2, 2, 1, 9, stride=2), 3))
    _, (operand,), _ = network.export()
    assert operand.name == "x"
    x = np.arange(54).reshape(3, 2, 9)
    assert np.array_equal(operand.read(x), x[..., ::2].reshape(operand.shape))


def test_gradients_pass() -> None:
    x = torch.rand(2, 4, 7, 6, dtype=torch.float64, requires_grad=True)
    equation, operands, _ = quantities.kfac_expand(CONV, 2).export(x=x)
    torch.einsum(equation, *map(torch.as_tensor, operands)).sum().backward()
    (expected,) = torch.autograd.grad(2 * functional.kfac_expand(x, CONV).sum(), x)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize(
    ("tensors", "error", "argument"),
    [
        ({"y": np.ones(3)}, TypeError, "operands"),
        ({"x": np.ones(3)}, ValueError, "x.shape"),
        ({"weight": np.ones((6, 2, 3))}, ValueError, "weight.shape"),
    ],
    ids=["name", "axes", "size"],
)
def test_refused(tensors: Any, error: type[Exception], argument: str) -> None:
    with pytest.raises(error) as caught:
        quantities.conv(CONV, 2).export(**tensors)
    assert_in_form(caught.value, "TensorNetwork.export", argument)


def test_without_nodes() -> None:
    with pytest.raises(ValueError) as caught:
        TensorNetwork((), (), {}).export()
    assert_in_form(caught.value, "TensorNetwork.export", "network")
