"""Factors of output gradients, against sums of outer products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.reference.jacobian import gradient_factor
from tests.strategies import examples, module_input, modules, noise_tensor
from tn_extensions import Conv, functional

Case = tuple[Any, tuple[int, ...]]
FACTORS = {
    "expand": functional.gradient_factor_expand,
    "reduce": functional.gradient_factor_reduce,
}


@pytest.mark.parametrize("approx", FACTORS)
@examples(40)
@given(modules(), st.sampled_from([1, 3]), st.sampled_from([None, 1, 2]))
def test_values(approx: str, case: Case, batch_size: int, vectors: int | None) -> None:
    module, sizes = case
    conv = Conv.from_module(module, sizes)
    lead = [batch_size] if vectors is None else [vectors, batch_size]
    g = noise_tensor((*lead, conv.out_channels, *conv.output_size))
    expected = gradient_factor(module, module_input(module, sizes, 1), g, approx)
    found = FACTORS[approx](g, conv)
    assert found.is_contiguous()
    assert_close(found, expected)
    assert_close(FACTORS[approx](g.mT.contiguous().mT, conv), expected)
    out = noise_tensor(expected.shape)
    before = out.clone()
    assert FACTORS[approx](g, conv, scale=0.5, out=out) is out
    assert_close(out, before + 0.5 * expected)


CONV = Conv.make(4, 6, 3, (5, 4), groups=2)
S = noise_tensor((2, 3, 6, *CONV.output_size))


@pytest.mark.parametrize("approx", FACTORS)
def test_half_precision_and_empty(approx: str) -> None:
    half = S.half()
    found = FACTORS[approx](half, CONV)
    assert found.dtype == torch.float32
    assert_close(found, FACTORS[approx](half.float(), CONV))
    assert torch.equal(FACTORS[approx](S[:, :0], CONV), torch.zeros(2, 3, 3).double())


@pytest.mark.parametrize("approx", FACTORS)
def test_derivatives(approx: str) -> None:
    g = S.clone().requires_grad_()
    assert gradcheck(lambda g: FACTORS[approx](g, CONV), g)
    out = torch.zeros(2, 3, 3).double()
    FACTORS[approx](g, CONV, out=out)
    assert not out.requires_grad


@pytest.mark.parametrize("approx", FACTORS)
@pytest.mark.parametrize(
    ("change", "error", "argument"),
    [
        ({"g": S[0, 0]}, ValueError, "g.shape"),
        ({"g": S[..., :1]}, ValueError, "g.shape"),
        ({"g": S.int()}, TypeError, "g"),
        ({"conv": 3}, TypeError, "conv"),
        ({"scale": "1"}, TypeError, "scale"),
        ({"out": torch.ones(2, 3, 2)}, ValueError, "out.shape"),
        ({"out": torch.ones(2, 3, 3)}, ValueError, "out.dtype"),
        ({"out": 3}, TypeError, "out"),
        ({"out": S.flatten()[:18].view(2, 3, 3)}, ValueError, "out"),
    ],
    ids=str,
)
def test_bad_input(
    approx: str, change: dict[str, Any], error: type[Exception], argument: str
) -> None:
    with pytest.raises(error) as caught:
        FACTORS[approx](**({"g": S, "conv": CONV} | change))
    assert_in_form(caught.value, f"gradient_factor_{approx}", argument)


@pytest.mark.parametrize("channels", [1, 3, 8, 24])
@pytest.mark.parametrize(("num_data", "positions"), [(4, 4096), (64, 64), (1, 2**16)])
def test_long_sums_in_single_precision(
    num_data: int, positions: int, channels: int
) -> None:
    """Gradients that are alike, as those of a square loss: errors do not add up."""
    vectors = torch.full((num_data, channels, positions), 0.7)
    conv = Conv.make(channels, channels, 1, positions)
    scale = 1 / (num_data * positions)
    found = functional.gradient_factor_expand(vectors, conv, scale=scale)
    expected = torch.full((1, channels, channels), 0.7).square().double()
    assert_close(found.double(), expected, rtol=2e-5, atol=0)
