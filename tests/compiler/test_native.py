"""Native kernels against their definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fake_cuda import FakeCuda
from tests.strategies import noise_tensor
from tn_extensions.compiler.native import (
    MOST_DIMS,
    convolution,
    depthwise_convolution,
    transposed_convolution,
    weight_gradient,
)

DIMS = range(1, MOST_DIMS + 1)
STRIDE, DILATION, KERNEL, OUTPUT = (2, 1, 3), (1, 3, 2), (2, 3, 1), (3, 2, 2)


def positions(axis: int, at: int) -> slice:
    """Return what a kernel position reads along a dimension."""
    start, step = DILATION[axis] * at, STRIDE[axis]
    return slice(start, start + step * (OUTPUT[axis] - 1) + 1, step)


def input_size(num_dims: int) -> list[int]:
    zipped = zip(STRIDE, DILATION, KERNEL, OUTPUT, strict=True)
    return [s * (o - 1) + d * (k - 1) + 1 for s, d, k, o in zipped][:num_dims]


@pytest.mark.parametrize("num_dims", DIMS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_weight_gradient(num_dims: int, groups: int, last: bool) -> None:
    x = noise_tensor((4, 2 * groups, *input_size(num_dims)))
    g = noise_tensor((4, 3 * groups, *OUTPUT[:num_dims]))
    if last:  # channels last in memory
        x, g = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, g))
    arguments = KERNEL[:num_dims], STRIDE[:num_dims], DILATION[:num_dims]
    result = weight_gradient(x, g, *arguments, groups)
    assert result.shape == (3 * groups, 2, *KERNEL[:num_dims])
    left = g.unflatten(1, (groups, 3)).flatten(3)
    for at in product(*map(range, KERNEL[:num_dims])):
        read = x[(..., *(positions(axis, k) for axis, k in enumerate(at)))]
        right = read.unflatten(1, (groups, 2)).flatten(3)
        expected = torch.einsum("ngao,ngbo->gab", left, right).flatten(0, 1)
        assert_close(result[(..., *at)], expected)


@pytest.mark.parametrize("num_dims", DIMS)
@pytest.mark.parametrize("last", [False, True])
def test_kernels_of_one_entry_are_products(num_dims: int, last: bool) -> None:
    x = noise_tensor((2, 3, 300, 2, 2)[: 2 + num_dims])
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    weight = noise_tensor((3, 4, *[1] * num_dims))
    x.requires_grad_(), weight.requires_grad_()
    ones, zeros = [1] * num_dims, [0] * num_dims
    result = transposed_convolution(x, weight, ones, zeros, zeros, ones, 1)
    expected = torch.einsum("nc...,cd->nd...", x, weight.flatten(1))
    assert_close(result, expected)
    empty = transposed_convolution(x[:0], weight, ones, zeros, zeros, ones, 1)
    assert empty.shape == result[:0].shape
    v = noise_tensor(tuple(result.shape))
    found = torch.autograd.grad(result, (x, weight), v)
    assert_close(found, torch.autograd.grad(expected, (x, weight), v))


@pytest.mark.parametrize(
    ("stride", "padding", "output_padding", "groups"),
    [(2, 0, 0, 1), (1, 1, 0, 1), (1, 0, 1, 1), (1, 0, 0, 3)],
)
def test_other_kernels_of_one_entry(
    stride: int, padding: int, output_padding: int, groups: int
) -> None:
    """Strided, cropped, padded or grouped ones are not plain products."""
    x, weight = noise_tensor((2, 3, 300)), noise_tensor((3, 4, 1))
    result = transposed_convolution(
        x, weight, [stride], [padding], [output_padding], [2], groups
    )
    kernels = weight.unflatten(0, (groups, 3 // groups))
    parts = torch.einsum(
        "ngci,gcd->ngdi", x.unflatten(1, kernels.shape[:2]), kernels[..., 0]
    )
    expected = x.new_zeros(2, 4 * groups, stride * 299 + 1 + output_padding)
    expected[..., : stride * 299 + 1 : stride] = parts.flatten(1, 2)
    assert_close(result, expected[..., padding : expected.shape[2] - padding])


@pytest.mark.parametrize("num_dims", DIMS)
def test_depthwise_convolution(num_dims: int) -> None:
    x = noise_tensor((5, *input_size(num_dims)))
    weight = noise_tensor((5, *KERNEL[:num_dims]))
    arguments = STRIDE[:num_dims], DILATION[:num_dims]
    expected = torch.zeros(5, *OUTPUT[:num_dims], dtype=x.dtype)
    for at in product(*map(range, KERNEL[:num_dims])):
        read = x[(..., *(positions(axis, k) for axis, k in enumerate(at)))]
        expected += read * weight[(..., *at)].view(5, *[1] * num_dims)
    assert_close(depthwise_convolution(x, weight, *arguments), expected)


class Settings(TorchDispatchMode):
    """Notes how precise cuDNN is to be, at each call of its kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator."""
        if "convolution" in func.name():
            self.seen.append(torch.backends.cudnn.conv.fp32_precision)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def unset() -> Iterator[None]:
    """Take back what a test sets."""
    settings = torch.backends.cudnn.conv
    before = settings.fp32_precision, torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before[1])
    settings.fp32_precision = before[0]


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "convolution": lambda x, w: convolution(x, w, (1, 1), (0, 0), (1, 1), 1),
    "transposed": lambda x, w: transposed_convolution(
        x, w, (1, 1), (0, 0), (0, 0), (1, 1), 1
    ),
    "gradient": lambda x, w: weight_gradient(x, x, (1, 1), (1, 1), (1, 1), 1),
    "depthwise": lambda x, w: depthwise_convolution(x[0], w[0], (1, 1), (1, 1)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("products", "expected"),
    [("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")],
)
@pytest.mark.parametrize("other", ["ieee", "tf32"])
def test_cudnn_is_as_precise_as_matrix_products(
    name: str, products: str, expected: str, other: str, cuda: FakeCuda, unset: None
) -> None:
    x, weight = cuda.tensor(2, 4, 6, 6), cuda.tensor(4, 4, 3, 3)
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.conv.fp32_precision = other
    with Settings() as settings:
        CALLS[name](x, weight)
    assert settings.seen == [expected]
    assert torch.backends.cudnn.conv.fp32_precision == other


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("products", "error"), [("highest", 1e-5), ("high", 1e-2)])
def test_rounding_on_cuda(products: str, error: float, unset: None) -> None:
    x = torch.rand(4, 16, 12, 12, device="cuda")
    arguments = x, x[:, :, :10, :10], (3, 3), (1, 1), (1, 1), 1
    exact = weight_gradient(*(t.double() for t in arguments[:2]), *arguments[2:])
    torch.set_float32_matmul_precision(products)
    result = weight_gradient(*arguments)
    assert_close(result.double(), exact, rtol=error, atol=10 * error)
