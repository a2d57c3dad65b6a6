"""Torch's own kernels: convolutions and their weight gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {
    1: F.conv1d,
    2: F.conv2d,
    3: F.conv3d,
}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}
_WIDE = 256
"""Positions from which on a product is faster than torch, for kernels of one entry."""
MOST_DIMS = max(_CONVOLUTIONS)
"""Largest number of spatial dimensions for which torch has kernels."""


def convolution(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Compute a convolution, ``[N, C_out, O...]``."""
    with _precision(x):
        return _CONVOLUTIONS[len(stride)](
            x, weight, None, list(stride), list(padding), list(dilation), groups
        )


def transposed_convolution(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Compute a transposed convolution, ``[N, C_out, O...]``, by the fastest call."""
    pointwise = prod(weight.shape[2:]) == prod(stride) == groups == 1
    pointwise = pointwise and not any(padding) and not any(output_padding)
    fits = x.device.type == "cpu" and x.is_contiguous()  # not channels last
    if pointwise and fits and prod(x.shape[2:]) >= _WIDE:
        # expanded, since matmul copies both factors to broadcast one
        product = weight.flatten(1).mT.expand(len(x), -1, -1) @ x.flatten(2)
        return product.unflatten(2, x.shape[2:])
    with _precision(x):
        return _TRANSPOSED[len(stride)](
            x,
            weight,
            None,
            list(stride),
            list(padding),
            list(output_padding),
            groups,
            list(dilation),
        )


def weight_gradient(
    x: Tensor,
    g: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding: Sequence[int] | None = None,
) -> Tensor:
    """Compute the weight gradient of a convolution, ``[C_out, C_in / G, K...]``."""
    shape = (g.shape[1], x.shape[1] // groups, *kernel)
    # torch takes a weight but only reads its shape
    weight = x.new_empty(1).expand(shape)
    zeros = [0] * len(kernel)
    with _precision(x):
        _, result, _ = torch.ops.aten.convolution_backward(
            g,
            x,
            weight,
            None,
            list(stride),
            zeros if padding is None else list(padding),
            list(dilation),
            False,
            zeros,
            groups,
            [False, True, False],
        )
    return result


def depthwise_convolution(
    x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Convolve each channel ``[C, I...]`` with its own kernel ``[C, K...]``."""
    convolve = _CONVOLUTIONS[len(stride)]
    with _precision(x):
        result = convolve(
            x[None],
            weight[:, None],
            stride=list(stride),
            dilation=list(dilation),
            groups=len(x),
        )
    return result[0]


def _precision(x: Tensor) -> AbstractContextManager[None]:
    """Let convolutions on CUDA round their inputs if matrix products may."""
    on_cuda = x.device.type == "cuda"
    return _rounding_like_products() if on_cuda else nullcontext()


@contextmanager
def _rounding_like_products() -> Iterator[None]:
    """Give cuDNN the precision of matrix products.

    torch has a separate setting for convolutions. By default, they round to 10 bits.
    """
    backends: Any = torch.backends
    convolutions, products = backends.cudnn.conv, backends.cuda.matmul
    before = convolutions.fp32_precision
    # what torch.set_float32_matmul_precision sets
    rounds = products.fp32_precision == "tf32"
    convolutions.fp32_precision = "tf32" if rounds else "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before
