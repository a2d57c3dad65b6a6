"""Each quantity's network against its definition by loops over the patches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from tests.messages import assert_in_form
from tests.reference import dense
from tests.strategies import BATCHES, convs, examples, noise
from tn_extensions import Conv, quantities

Array = NDArray[np.float64]


def unfolded(conv: Conv, x: Array) -> Array:
    """Patches in the order of torch's unfold, ``[N, C_in * K, O]``."""
    u = dense.patches(conv, x)
    return u.reshape(len(x), -1, u.shape[-1])


def outer(u: Array) -> Array:
    """Sum of outer products over data and columns, per group."""
    return np.einsum("ngap,ngbp->gab", u, u)


def gradient(conv: Conv, x: Array) -> Array:
    """A gradient of the output."""
    return noise((len(x), conv.out_channels, *conv.output_size))


def toeplitz(conv: Conv, x: Array) -> Array:
    """Images of all unit inputs, a column each."""
    size = x[0].size
    units = np.eye(size).reshape(size, *x.shape[1:])
    return dense.convolve(conv, units, noise(conv.weight_shape)).reshape(size, -1).T


def weight_gradient(conv: Conv, x: Array) -> Array:
    """Inner products of the gradient with the images of all unit kernels."""
    size = noise(conv.weight_shape).size
    units = np.eye(size).reshape(size, *conv.weight_shape)
    images = (dense.convolve(conv, x, unit) for unit in units)
    inner = [np.sum(gradient(conv, x) * image) for image in images]
    return np.reshape(inner, conv.weight_shape)


DEFINITIONS: dict[str, Callable[[Conv, Array], Array]] = {
    "conv": lambda conv, x: dense.convolve(conv, x, noise(conv.weight_shape)),
    "input_jvp": lambda conv, x: dense.convolve(conv, x, noise(conv.weight_shape)),
    "weight_jvp": lambda conv, x: dense.convolve(conv, x, noise(conv.weight_shape)),
    "input_vjp": lambda conv, x: (
        gradient(conv, x).reshape(len(x), -1) @ toeplitz(conv, x)
    ).reshape(x.shape),
    "weight_vjp": weight_gradient,
    "unfold_weight": toeplitz,
    "unfold_input": unfolded,
    "patch_sum": lambda conv, x: dense.patches(conv, x).sum(-1),
    "patch_total": lambda conv, x: dense.patches(conv, x).sum((0, -1)),
    "kfac_expand": lambda conv, x: outer(dense.patches(conv, x)),
    "kfac_reduce": lambda conv, x: outer(dense.patches(conv, x).sum(-1, keepdims=True)),
}


@pytest.mark.parametrize("name", DEFINITIONS)
@examples(25)
@given(convs(), BATCHES)
def test_network_is_the_definition(name: str, conv: Conv, batch_size: int) -> None:
    network = getattr(quantities, name)(conv, batch_size)
    x = noise((batch_size, conv.in_channels, *conv.input_size))
    weight = noise(conv.weight_shape)
    arrays = {"x": x, "x_dot": x, "weight": weight, "weight_dot": weight}
    result = dense.evaluate(network, {**arrays, "g": gradient(conv, x)})
    expected = DEFINITIONS[name](conv, x)
    assert network.shape == expected.shape
    assert_allclose(result, expected, atol=1e-10)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_names_are_those_of_the_quantity_type(name: str) -> None:
    assert set(DEFINITIONS) == set(quantities.Quantity.__args__)  # type: ignore[attr-defined]
    network = getattr(quantities, name)(Conv.make(4, 2, (3, 2), (5, 4), groups=2), 3)
    base = {index.rstrip("p") for index in network.indices}
    names = {"n", "g", "ci", "co", "i1", "i2", "k1", "k2", "o1", "o2"}
    assert base <= names
    operands = {"x", "weight", "g", "x_dot", "weight_dot"}
    assert {operand.name for operand in network.operands} <= operands


@pytest.mark.parametrize("name", DEFINITIONS)
def test_padding_that_holds_data_must_be_explicit(name: str) -> None:
    conv = Conv.make(1, 1, 3, 5, padding=1, padding_mode="circular")
    with pytest.raises(ValueError) as caught:
        getattr(quantities, name)(conv, 2)
    assert_in_form(caught.value, "quantities", "conv.padding_mode")
    assert getattr(quantities, name)(conv.explicitly_padded, 2)
