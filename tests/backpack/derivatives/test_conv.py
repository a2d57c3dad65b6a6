"""Derivatives of convolutions by their input, kernel and bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.testing import assert_close

from tests.backpack.derivatives.products import COLUMNS, check, jvp
from tests.strategies import (
    MODULES,
    examples,
    module_input,
    modules,
    noise_tensor,
)
from tn_extensions import Conv
from tn_extensions.backpack.derivatives import (
    ConvDerivatives,
)


@examples(60)
@given(modules(), st.sampled_from([1, 3]))
def test_convolutions(case: Any, batch_size: int) -> None:
    module, sizes = case
    check(ConvDerivatives(), module, module_input(module, sizes, batch_size))


@examples(30)
@given(modules(transposed=True), st.data())
def test_output_size(case: Any, data: st.DataObject) -> None:
    module, sizes = case
    smallest = [
        dim.output_size - dim.output_padding
        for dim in Conv.from_module(module, sizes).dims
    ]
    size = [
        data.draw(st.integers(least, least + stride - 1))
        for least, stride in zip(smallest, module.stride, strict=True)
    ]
    check(ConvDerivatives(), module, module_input(module, sizes, 2), size)


def options_of(num_dims: int, mode: str) -> list[dict[str, Any]]:
    """Uneven 'same', and padding as wide as the mode allows."""
    last: dict[str, Any] = {"padding_mode": mode, "groups": 2}
    return [
        last | {"kernel_size": (2, 4, 2)[:num_dims], "padding": "same"},
        last | {"kernel_size": 3, "padding": (3, 1, 2)[:num_dims], "stride": 2},
        last | {"kernel_size": 2, "padding": 2, "dilation": (3, 1, 2)[:num_dims]},
    ]


@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding(num_dims: int, mode: str) -> None:
    for options in options_of(num_dims, mode):
        module = MODULES[False][num_dims - 1](2, 4, **options).double()
        check(ConvDerivatives(), module, noise_tensor((2, 2, *(4, 4, 3)[:num_dims])))


def test_convolution_of_other_layouts_and_dtypes() -> None:
    module: Any = nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular", groups=2)
    x = noise_tensor((2, 4, 5, 6))
    check(ConvDerivatives(), module.double(), x.to(memory_format=torch.channels_last))
    mat = noise_tensor((COLUMNS, 2, 5, 6, 6)).movedim(-1, 2)
    full = ConvDerivatives().jac_t_mat_prod(module, None, None, mat)
    half = ConvDerivatives().jac_t_mat_prod(module, None, None, mat.bfloat16())
    assert half.dtype == torch.bfloat16
    assert_close(half.double(), full, rtol=0.05, atol=0.05)


@examples(40)
@given(modules(), st.sampled_from([1, 3]))
def test_parameters_of_convolutions(case: Any, batch_size: int) -> None:
    """Jacobians with respect to input, kernel and bias, and their transposes."""
    module, sizes = case
    x = module_input(module, sizes, batch_size)
    derivatives: Any = ConvDerivatives()
    module.input0, module.output = x, module(x).detach()
    tangents = noise_tensor((COLUMNS, *x.shape))
    wanted = torch.stack([jvp(lambda x: module(x), x, t) for t in tangents])
    assert_close(derivatives.jac_mat_prod(module, None, None, tangents), wanted)
    mat = noise_tensor((COLUMNS, *module.output.shape))
    for name, parameter in module.named_parameters():

        def output(p: Tensor, name: str = name) -> Tensor:
            return functional_call(module, {name: p}, x)

        value = parameter.detach()
        tangents = noise_tensor((COLUMNS, *value.shape))
        apply = getattr(derivatives, f"{name}_jac_mat_prod")
        wanted = torch.stack([jvp(output, value, t) for t in tangents])
        assert_close(apply(module, None, None, tangents), wanted)

        j = jacrev(output)(value).flatten(1, -value.dim() - 1)
        products = torch.einsum("nc...,vnc->vn...", j, mat.flatten(2))
        for samples in (None, [0], [batch_size - 1, 0]):
            chosen, subset = (
                (products, mat)
                if samples is None
                else (products[:, samples], mat[:, samples])
            )
            found = derivatives.param_mjp(
                name, module, None, None, subset, sum_batch=False, subsampling=samples
            )
            assert_close(found, chosen)
            total = derivatives.param_mjp(
                name, module, None, None, subset, subsampling=samples
            )
            assert_close(total, chosen.sum(1))
