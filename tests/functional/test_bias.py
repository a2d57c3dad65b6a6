"""Gradients of a bias, and what is made of them, against automatic differentiation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.strategies import examples, module_input, modules, noise_tensor
from tn_extensions import Conv, functional

Case = tuple[Any, tuple[int, ...]]
NAMES = ("bias_per_sample_grad", "bias_per_sample_grad_norm")
ROOTS = ("bias_ggn_diagonal", "bias_ggn_gram")
VECTORS = 2


@examples(40)
@given(modules(), st.sampled_from([1, 3]))
def test_values(case: Case, batch_size: int) -> None:
    module, sizes = case
    conv = Conv.from_module(module, sizes)
    module.bias = nn.Parameter(torch.zeros(conv.out_channels, dtype=torch.float64))
    x = module_input(module, sizes, batch_size)
    vectors = noise_tensor((VECTORS, batch_size, conv.out_channels, *conv.output_size))
    gradients = torch.stack(
        [
            torch.autograd.grad(module(x[n : n + 1]), module.bias, g[n : n + 1])[0]
            for g in vectors
            for n in range(batch_size)
        ]
    ).unflatten(0, (VECTORS, -1))
    norms, squares = gradients.square().sum(-1), gradients.square()
    rows = gradients.flatten(0, 1)
    for g, one, norm in zip(vectors, gradients, norms, strict=True):
        assert_close(functional.bias_vjp(g, conv), one.sum(0))
        assert_close(functional.bias_per_sample_grad(g, conv), one)
        assert_close(functional.bias_per_sample_grad_norm(g, conv), norm)
    assert_close(functional.bias_per_sample_grad(vectors, conv), gradients)
    assert_close(functional.bias_per_sample_grad_norm(vectors, conv), norms)
    assert_close(functional.bias_ggn_diagonal(vectors, conv), squares.sum((0, 1)))
    kept = functional.bias_ggn_diagonal(vectors, conv, per_sample=True)
    assert_close(kept, squares.sum(0))
    assert_close(functional.bias_ggn_gram(vectors, conv), rows @ rows.mT)


CONV = Conv.make(4, 2, 3, (6, 5), padding=1)
S = noise_tensor((7, 3, 2, 6, 5))


@pytest.mark.parametrize("name", [*NAMES, *ROOTS])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_half_precision_and_empty(name: str, dtype: torch.dtype) -> None:
    call = getattr(functional, name)
    result = call(S.to(dtype), CONV)
    assert result.dtype == torch.float32
    assert_close(result.double(), call(S, CONV), rtol=1e-2, atol=1e-2)
    assert not call(S[:, :0], CONV).any()


def test_differentiable() -> None:
    g = S[:2].clone().requires_grad_()
    assert gradcheck(lambda g: functional.bias_vjp(g[0], CONV), g)
    assert gradcheck(lambda g: functional.bias_per_sample_grad(g, CONV), g)
    for name in (NAMES[1], *ROOTS):
        assert not getattr(functional, name)(g, CONV).requires_grad


@pytest.mark.parametrize("name", ["bias_vjp", *NAMES, *ROOTS])
def test_refused(name: str) -> None:
    called = "S" if name in ROOTS else "g"
    call = getattr(functional, name)
    for wrong in (S.mT, S[0, 0], S[None], S[..., 0, 0, 0]):
        with pytest.raises(ValueError) as caught:
            call(wrong, CONV)
        assert_in_form(caught.value, name, f"{called}.shape")
    if name in ROOTS:
        with pytest.raises(ValueError) as caught:
            call(S[0], CONV)
        assert_in_form(caught.value, name, "S.shape")
    for bad in (S.int(), None):
        with pytest.raises(TypeError) as refused:
            call(bad, CONV)
        assert_in_form(refused.value, name, called)
    with pytest.raises(TypeError) as refused:
        call(S, "conv")
    assert_in_form(refused.value, name, "conv")
