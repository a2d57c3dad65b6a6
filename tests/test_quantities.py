"""Each quantity's network against its definition by loops over the patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from tests.messages import assert_in_form
from tests.reference import dense
from tests.strategies import BATCHES, convs, examples, noise
from tn_extensions import Conv, quantities

Array = NDArray[np.float64]
Arrays = dict[str, Array]


def unfolded(conv: Conv, x: Array) -> Array:
    """Patches in the order of torch's unfold, ``[N, C_in * K, O]``."""
    u = dense.patches(conv, x)
    return u.reshape(len(x), -1, u.shape[-1])


def folded(conv: Conv, x: Array) -> Array:
    """Inner products with the patches of all unit inputs."""
    u, size = noise(unfolded(conv, x).shape), x[0].size
    images = unfolded(conv, np.eye(size).reshape(size, *x.shape[1:]))
    return np.einsum("ncp,zcp->nz", u, images).reshape(x.shape)


def outer(u: Array) -> Array:
    """Sum of outer products over data and columns, per group."""
    return np.einsum("ngap,ngbp->gab", u, u)


def gradient(conv: Conv, x: Array) -> Array:
    """Make a gradient of the output."""
    return noise((len(x), conv.out_channels, *conv.output_size))


def toeplitz(conv: Conv, x: Array) -> Array:
    """Compute the images of all unit inputs, a column each."""
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


VECTORS = 2


def vectors(conv: Conv, x: Array) -> Array:
    """Several gradients of the output for each sample."""
    return noise((VECTORS, *gradient(conv, x).shape))


def gradients(conv: Conv, x: Array) -> Array:
    """Compute the kernel's gradient for each vector and sample, ``[V, N, ...]``."""
    size = noise(conv.weight_shape).size
    units = np.eye(size).reshape(size, *conv.weight_shape)
    images = np.stack([dense.convolve(conv, x, unit) for unit in units])
    inner = np.einsum(
        "unz,vnz->vnu",
        *(array.reshape(*array.shape[:2], -1) for array in (images, vectors(conv, x))),
    )
    return inner.reshape(*inner.shape[:2], *conv.weight_shape)


def bias_gradients(conv: Conv, x: Array) -> Array:
    """Compute the bias's gradient for each vector and sample, ``[V, N, C_out]``."""
    found = vectors(conv, x)
    return found.reshape(*found.shape[:3], -1).sum(-1)


def inner_products(gradients: Array) -> Array:
    """Compute the inner products of gradients ``[V, N, ...]``."""
    rows = gradients.reshape(gradients.shape[0] * gradients.shape[1], -1)
    return rows @ rows.T


def outputs(conv: Conv, g: Array) -> Array:
    """Gradients ``[..., N, C_out, O1, ...]`` of the output as ``[.., G, CO, O]``."""
    return g.reshape(-1, conv.groups, conv.out_channels // conv.groups, g[0, 0].size)


def bases(conv: Conv, rank_a: int | None = None, rank_b: int | None = None) -> Arrays:
    """Bases of patches and of output channels, with so many columns."""
    rows = dense.patches(conv, np.zeros((1, conv.in_channels, *conv.input_size)))
    sizes = rows.shape[2], conv.out_channels // conv.groups
    ranks = [*sizes] if rank_a is None or rank_b is None else [rank_a, rank_b]
    shapes = ((conv.groups, *both) for both in zip(sizes, ranks, strict=True))
    return dict(zip(("QA", "QB"), map(noise, shapes), strict=True))


def rotated(conv: Conv, x: Array, *ranks: int) -> Array:
    """Gradients of samples between two bases, ``[N, G, CO, CI * K]``."""
    own, u = bases(conv, *ranks), dense.patches(conv, x)
    gradients = np.einsum("ngcp,ngdp->ngcd", outputs(conv, gradient(conv, x)), u)
    return own["QB"].swapaxes(1, 2) @ gradients @ own["QA"]


def norms(gradients: Array) -> Array:
    """Squared norms of gradients ``[V, N, ...]``."""
    return np.square(gradients.reshape(*gradients.shape[:2], -1)).sum(-1)


def matvec(conv: Conv, x: Array) -> Array:
    """Form the kernel's GGN, and multiply it with a kernel."""
    rows = gradients(conv, x).reshape(-1, noise(conv.weight_shape).size)
    product = rows.T @ (rows @ noise(conv.weight_shape).ravel())
    return product.reshape(conv.weight_shape)


WITH_VECTORS = ("per_sample_grad", "per_sample_grad_norm", "ggn_diagonal", "ggn_gram")
ARGUMENTS: dict[str, tuple[int, ...]] = {
    f"{prefix}{name}": (VECTORS,) for name in WITH_VECTORS for prefix in ("", "bias_")
} | {"ggn_matvec": (VECTORS,)}

DEFINITIONS: dict[str, Callable[[Conv, Array], Array]] = {
    "per_sample_grad": gradients,
    "per_sample_grad_norm": lambda conv, x: norms(gradients(conv, x)),
    "ggn_diagonal": lambda conv, x: np.square(gradients(conv, x)).sum((0, 1)),
    "ggn_gram": lambda conv, x: inner_products(gradients(conv, x)),
    "ggn_matvec": matvec,
    "diagonal_backward": lambda conv, x: (
        gradient(conv, x).reshape(len(x), -1) @ np.square(toeplitz(conv, x))
    ).reshape(x.shape),
    "bias_vjp": lambda conv, x: gradient(conv, x).sum((0, *range(2, x.ndim))),
    "bias_per_sample_grad": bias_gradients,
    "bias_per_sample_grad_norm": lambda conv, x: norms(bias_gradients(conv, x)),
    "bias_ggn_diagonal": lambda conv, x: np.square(bias_gradients(conv, x)).sum((0, 1)),
    "bias_ggn_gram": lambda conv, x: inner_products(bias_gradients(conv, x)),
    "conv": lambda conv, x: dense.convolve(conv, x, noise(conv.weight_shape)),
    "input_jvp": lambda conv, x: dense.convolve(conv, x, noise(conv.weight_shape)),
    "weight_jvp": lambda conv, x: dense.convolve(conv, x, noise(conv.weight_shape)),
    "input_vjp": lambda conv, x: (
        gradient(conv, x).reshape(len(x), -1) @ toeplitz(conv, x)
    ).reshape(x.shape),
    "weight_vjp": weight_gradient,
    "unfold_weight": toeplitz,
    "unfold_input": unfolded,
    "fold_output": folded,
    "patch_sum": lambda conv, x: dense.patches(conv, x).sum(-1),
    "patch_total": lambda conv, x: dense.patches(conv, x).sum((0, -1)),
    "kfac_expand": lambda conv, x: outer(dense.patches(conv, x)),
    "kfac_reduce": lambda conv, x: outer(dense.patches(conv, x).sum(-1, keepdims=True)),
    "gradient_factor_expand": lambda conv, x: outer(outputs(conv, gradient(conv, x))),
    "gradient_factor_reduce": lambda conv, x: outer(
        outputs(conv, gradient(conv, x)).sum(-1, keepdims=True)
    ),
    "rotated_grad": rotated,
    "kfac_moments": lambda conv, x: np.square(rotated(conv, x)).sum(0),
}


@pytest.mark.parametrize("name", DEFINITIONS)
@examples(25)
@given(convs(), BATCHES)
def test_network_is_the_definition(name: str, conv: Conv, batch_size: int) -> None:
    arguments = ARGUMENTS.get(name, ())
    network = getattr(quantities, name)(conv, batch_size, *arguments)
    x = noise((batch_size, conv.in_channels, *conv.input_size))
    weight = noise(conv.weight_shape)
    arrays = {"x": x, "x_dot": x, "weight": weight, "weight_dot": weight}
    arrays["u"] = noise(unfolded(conv, x).shape)
    g = vectors(conv, x) if arguments else gradient(conv, x)
    result = dense.evaluate(network, {**arrays, "g": g, "h": g, **bases(conv)})
    expected = DEFINITIONS[name](conv, x)
    assert network.shape == expected.shape
    assert_allclose(result, expected, atol=1e-10)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_names_are_those_of_the_quantity_type(name: str) -> None:
    assert set(DEFINITIONS) == set(quantities.Quantity.__args__)  # type: ignore[attr-defined]
    conv = Conv.make(4, 2, (3, 2), (5, 4), groups=2)
    network = getattr(quantities, name)(conv, 3, *ARGUMENTS.get(name, ()))
    base = {index.rstrip("p") for index in network.indices}
    names = {"v", "n", "g", "ci", "co", "i1", "i2", "k1", "k2", "o1", "o2", "a", "b"}
    assert base <= names
    operands = {"x", "weight", "g", "h", "x_dot", "weight_dot", "u", "QA", "QB"}
    assert {operand.name for operand in network.operands} <= operands


@pytest.mark.parametrize("name", DEFINITIONS)
def test_padding_that_holds_data_must_be_explicit(name: str) -> None:
    conv = Conv.make(1, 1, 3, 5, padding=1, padding_mode="circular")
    with pytest.raises(ValueError) as caught:
        getattr(quantities, name)(conv, 2, *ARGUMENTS.get(name, ()))
    assert_in_form(caught.value, "quantities", "conv.padding_mode")
    padded = conv.explicitly_padded
    assert getattr(quantities, name)(padded, 2, *ARGUMENTS.get(name, ()))


@examples(20)
@given(convs(), BATCHES)
def test_variants_of_the_axes(conv: Conv, batch_size: int) -> None:
    x = noise((batch_size, conv.in_channels, *conv.input_size))
    found, g = gradients(conv, x), vectors(conv, x)
    kept = quantities.ggn_diagonal(conv, batch_size, VECTORS, per_sample=True)
    result = dense.evaluate(kept, {"x": x, "g": g})
    assert_allclose(result, np.square(found).sum(0), atol=1e-10)
    single = quantities.per_sample_grad(conv, batch_size)
    result = dense.evaluate(single, {"x": x, "g": g[0]})
    assert_allclose(result, found[0], atol=1e-10)
    norm = quantities.per_sample_grad_norm(conv, batch_size)
    result = dense.evaluate(norm, {"x": x, "g": g[0]})
    expected = np.square(found[0].reshape(batch_size, -1)).sum(-1)
    assert_allclose(result, expected, atol=1e-10)
    rows = outputs(conv, g.reshape(-1, *g.shape[2:]))
    for name, columns in (("expand", rows), ("reduce", rows.sum(-1, keepdims=True))):
        define = getattr(quantities, f"gradient_factor_{name}")
        result = dense.evaluate(define(conv, batch_size, VECTORS), {"g": g})
        assert_allclose(result, outer(columns), atol=1e-10)


@examples(20)
@given(convs(max_dims=2), BATCHES, st.integers(0, 3))
def test_products_of_many_kernels(conv: Conv, batch_size: int, number: int) -> None:
    x = noise((batch_size, conv.in_channels, *conv.input_size))
    kernels = noise((number, *conv.weight_shape))
    arrays = {"x": x, "g": vectors(conv, x), "weight_dot": kernels}
    network = quantities.ggn_matvec(conv, batch_size, VECTORS, number)
    rows = gradients(conv, x).reshape(-1, noise(conv.weight_shape).size)
    expected = kernels.reshape(number, rows.shape[1]) @ rows.T @ rows
    result = dense.evaluate(network, arrays)
    assert_allclose(result, expected.reshape(kernels.shape), atol=1e-9)


@examples(20)
@given(convs(max_dims=2), BATCHES, st.integers(0, 3), st.integers(1, 3))
def test_bases_need_not_be_square(
    conv: Conv, batch_size: int, rank_a: int, rank_b: int
) -> None:
    x = noise((batch_size, conv.in_channels, *conv.input_size))
    arrays = {"x": x, "g": gradient(conv, x), **bases(conv, rank_a, rank_b)}
    network = quantities.kfac_moments(conv, batch_size, rank_a, rank_b)
    expected = np.square(rotated(conv, x, rank_a, rank_b)).sum(0)
    assert network.shape == expected.shape
    assert_allclose(dense.evaluate(network, arrays), expected, atol=1e-10)


@pytest.mark.parametrize("rank", [2.0, "2", True, -1])
@pytest.mark.parametrize("name", ["rotated_grad", "kfac_moments"])
@pytest.mark.parametrize("argument", ["rank_a", "rank_b"])
def test_ranks_that_are_none(name: str, argument: str, rank: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(quantities, name)(Conv.make(1, 1, 3, 5), 2, **{argument: rank})
    assert_in_form(caught.value, "quantities", argument)


@pytest.mark.parametrize("batch_size", [2.0, "2", None, True, [2], -1])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_batch_sizes_that_are_none(name: str, batch_size: Any) -> None:
    if name == "unfold_weight":  # the same for all
        return
    conv = Conv.make(1, 1, 3, 5)
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(quantities, name)(conv, batch_size, *ARGUMENTS.get(name, ()))
    assert_in_form(caught.value, "quantities", "batch_size")


@pytest.mark.parametrize("num_vectors", [2.0, "2", True, [2], -1, None])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_numbers_of_vectors_that_are_none(name: str, num_vectors: Any) -> None:
    if num_vectors is None and "per_sample" in name:  # one, without an axis
        return
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(quantities, name)(Conv.make(1, 1, 3, 5), 2, num_vectors)
    assert_in_form(caught.value, "quantities", "num_vectors")


@pytest.mark.parametrize("name", DEFINITIONS)
def test_sizes_of_any_kind(name: str) -> None:
    conv, define = Conv.make(1, 1, 3, 5), getattr(quantities, name)
    arguments = ARGUMENTS.get(name, ())
    expected = define(conv, 2, *arguments)
    found = define(conv, np.int64(2), *map(np.int32, arguments))
    assert found == expected and repr(found) == repr(expected)
    with pytest.raises(TypeError) as caught:
        define(object(), 2, *arguments)
    assert_in_form(caught.value, "quantities", "conv")
