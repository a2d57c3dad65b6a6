"""Quantities on a CUDA device that is not there: nothing on the host, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fake_cuda import FakeCuda
from tn_extensions import Conv, functional


def basis(conv: Conv, ones: int) -> tuple[int, ...]:
    """Shape of a basis of patches, with ones at their ends or without."""
    size = conv.in_channels // conv.groups * prod(conv.kernel_size) + ones
    return conv.groups, size, size


LAYERS = {
    "1d": Conv.make(4, 6, 3, (20,), padding=2, dilation=2),
    "2d": Conv.make(16, 16, 3, (14, 14), padding=1),
    "3d": Conv.make(2, 4, 2, (4, 5, 6), padding=1, padding_mode="replicate"),
    "strided": Conv.make(3, 64, 7, (32, 32), 2, padding=3),
    "groups": Conv.make(4, 6, 3, (9, 8), padding=1, groups=2, padding_mode="circular"),
    "depthwise": Conv.make(8, 8, 7, (9, 9), padding=3, groups=8),
    "transposed": Conv.make(4, 6, 3, (8, 7), 2, padding=1, transposed=True),
    "one entry": Conv.make(8, 6, 1, (8, 7)),
    "patches": Conv.make(3, 8, 4, (16, 16), 4),
}


TENSORS: dict[str, Callable[[Conv, int], tuple[int, ...]]] = {
    "x": lambda conv, n: (n, conv.in_channels, *conv.input_size),
    "g": lambda conv, n: (n, conv.out_channels, *conv.output_size),
    "S": lambda conv, n: (3, n, conv.out_channels, *conv.output_size),
    "weight": lambda conv, n: conv.weight_shape,
    "vectors": lambda conv, n: (2, *conv.weight_shape),
    "u": lambda conv, n: (
        n,
        conv.in_channels * prod(conv.kernel_size),
        prod(conv.output_size),
    ),
    "QA": lambda conv, n: basis(conv, 0),
    "QA, bias": lambda conv, n: basis(conv, 1),
    "QB": lambda conv, n: (conv.groups, *[conv.out_channels // conv.groups] * 2),
}
CALLS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "conv": ("conv", ("x", "weight"), {}),
    "weight_vjp": ("weight_vjp", ("x", "g"), {}),
    "input_vjp": ("input_vjp", ("weight", "g"), {}),
    "weight_jvp": ("weight_jvp", ("x", "weight"), {}),
    "input_jvp": ("input_jvp", ("weight", "x"), {}),
    "unfold_input": ("unfold_input", ("x",), {}),
    "unfold_weight": ("unfold_weight", ("weight",), {}),
    "fold_output": ("fold_output", ("u",), {}),
    "patch_mean": ("patch_mean", ("x",), {}),
    "kfac_expand": ("kfac_expand", ("x",), {}),
    "kfac_expand, bias": ("kfac_expand", ("x",), {"bias": True}),
    "kfac_reduce": ("kfac_reduce", ("x",), {}),
    "kfac_reduce, bias": ("kfac_reduce", ("x",), {"bias": True}),
    "per_sample_grad": ("per_sample_grad", ("x", "g"), {}),
    "per_sample_grad, V": ("per_sample_grad", ("x", "S"), {}),
    "per_sample_grad_norm": ("per_sample_grad_norm", ("x", "g"), {}),
    "per_sample_grad_norm, V": ("per_sample_grad_norm", ("x", "S"), {}),
    "ggn_diagonal": ("ggn_diagonal", ("x", "S"), {}),
    "ggn_diagonal, N": ("ggn_diagonal", ("x", "S"), {"per_sample": True}),
    "ggn_gram": ("ggn_gram", ("x", "S"), {}),
    "ggn_matvec": ("ggn_matvec", ("x", "S", "vectors"), {}),
    "ggn_matvec, one": ("ggn_matvec", ("x", "S", "weight"), {}),
    "diagonal_backward": ("diagonal_backward", ("weight", "g"), {}),
    "gradient_factor_expand": ("gradient_factor_expand", ("g",), {}),
    "gradient_factor_reduce": ("gradient_factor_reduce", ("S",), {}),
    "rotated_grad": ("rotated_grad", ("x", "g", "QA", "QB"), {}),
    "kfac_moments": ("kfac_moments", ("x", "g", "QA", "QB"), {}),
    "kfac_moments, bias": (
        "kfac_moments",
        ("x", "g", "QA, bias", "QB"),
        {"bias": True},
    ),
    "bias_vjp": ("bias_vjp", ("g",), {}),
    "bias_per_sample_grad": ("bias_per_sample_grad", ("S",), {}),
    "bias_per_sample_grad_norm": ("bias_per_sample_grad_norm", ("S",), {}),
    "bias_ggn_diagonal": ("bias_ggn_diagonal", ("S",), {}),
    "bias_ggn_gram": ("bias_ggn_gram", ("S",), {}),
}
"""Functions, the tensors they take, and options."""


def given(cuda: FakeCuda, conv: Conv, batch_size: int, names: Any) -> list[Tensor]:
    """Tensors of a call."""
    return [cuda.tensor(*TENSORS[name](conv, batch_size)) for name in names]


def cases() -> Iterator[tuple[str, str, int]]:
    """Yield calls, layers and batch sizes; all combinations would take long."""
    for call, (_, names, _) in CALLS.items():
        yield call, "2d", 1
        for layer in LAYERS:
            if layer == "2d" or {*names} & {"x", "weight"}:
                yield call, layer, 8


@pytest.mark.parametrize(("call", "layer", "batch_size"), cases())
def test_quantities(call: str, layer: str, batch_size: int, cuda: FakeCuda) -> None:
    name, names, options = CALLS[call]
    conv = LAYERS[layer]
    tensors = given(cuda, conv, batch_size, names)
    cuda.run(lambda: getattr(functional, name)(*tensors, conv, **options))


def test_no_quantity_is_left_out() -> None:
    tested = {name for name, _, _ in CALLS.values()}
    assert tested == {*functional.__all__} - {"plan", "plan_together", "together"}


def test_together(cuda: FakeCuda) -> None:
    conv = LAYERS["2d"]
    x, S = given(cuda, conv, 8, ("x", "S"))
    asked = "ggn_diagonal", "ggn_gram", "per_sample_grad", "kfac_reduce"
    assert functional.plan_together(*asked[:3], x=x, g=S, conv=conv).sharing is not None
    cuda.run(lambda: functional.together(*asked, x=x, g=S, conv=conv))


@pytest.mark.parametrize("name", ["kfac_expand", "kfac_reduce"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_out(name: str, bias: bool, dtype: torch.dtype, cuda: FakeCuda) -> None:
    conv, factor = LAYERS["2d"], getattr(functional, name)
    x = cuda.tensor(*TENSORS["x"](conv, 4), dtype=dtype)
    out = factor(x, conv, bias=bias)
    assert out.dtype == torch.promote_types(dtype, torch.float32)
    assert cuda.run(lambda: factor(x, conv, bias=bias, out=out)) is out


@pytest.mark.parametrize("call", ["conv", "kfac_expand", "kfac_reduce, bias"])
def test_gradients(call: str, cuda: FakeCuda) -> None:
    name, names, options = CALLS[call]
    tensors = given(cuda, LAYERS["2d"], 2, names)
    for tensor in tensors:
        tensor.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        result = getattr(functional, name)(*tensors, LAYERS["2d"], **options)
        return torch.autograd.grad(result.sum(), tensors)

    cuda.run(run)
