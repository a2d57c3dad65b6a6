"""Kronecker factors estimated from some of the samples."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.reference.jacobian import kfac_factor
from tests.strategies import examples, module_input, modules, noise_tensor
from tn_extensions import Conv, functional
from tn_extensions.sampling import SAMPLERS, draw

FACTORS = {"expand": functional.kfac_expand, "reduce": functional.kfac_reduce}
SHARE = 0.6


@examples(60)
@given(case=st.data())
def test_every_convolution(case: st.DataObject) -> None:
    """Each kept sample counts by the inverse of its probability."""
    module, sizes = case.draw(modules())
    approx = case.draw(st.sampled_from(sorted(FACTORS)))
    sampler = case.draw(st.sampled_from(SAMPLERS))
    bias = case.draw(st.booleans())
    count, seed = case.draw(st.sampled_from([1, 2, 5])), case.draw(st.integers(0, 20))
    x = module_input(module, sizes, count)
    conv = Conv.from_module(module, x.shape[2:])
    norms = x.flatten(1).square().sum(1) + bias * prod(conv.output_size)
    own = torch.Generator()
    kept = draw(count, SHARE, sampler, own.manual_seed(seed), norms)
    expected = sum(
        factor * kfac_factor(module, x[n : n + 1], approx, bias) / count
        for n, factor in zip(kept.indices.tolist(), kept.factors, strict=True)
    )
    options: dict[str, Any] = {
        "bias": bias,
        "keep": {"n": SHARE},
        "sampler": sampler,
        "generator": own,
    }
    own.manual_seed(seed)
    found = FACTORS[approx](x, conv, **options)
    assert_close(found, torch.zeros_like(found) + expected)
    # added to another, and by autograd
    own.manual_seed(seed)
    out = torch.ones_like(found)
    assert FACTORS[approx](x, conv, out=out, **options) is out
    assert_close(out, 1 + found)
    own.manual_seed(seed)
    traced = FACTORS[approx](x.clone().requires_grad_(), conv, **options)
    assert_close(traced.detach(), found)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_unbiased(sampler: Any) -> None:
    """The mean of many draws is within four standard errors."""
    conv = Conv.make(2, 2, 2, input_size=(3,))
    x = noise_tensor([4, 2, 3]) * torch.arange(4)[:, None, None]
    expected = functional.kfac_expand(x, conv, bias=True)
    own = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"keep": {"n": 0.5}, "sampler": sampler}
    draws = torch.stack(
        [
            functional.kfac_expand(x, conv, bias=True, generator=own, **options)
            for _ in range(2000)
        ]
    )
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() <= 4 * error + 1e-12).all()


@pytest.mark.parametrize("keep", [None, {}, {"n": 1}])
def test_all_samples(keep: Any) -> None:
    conv, x = Conv.make(2, 2, 2, input_size=(3,)), noise_tensor([4, 2, 3])
    before = torch.get_rng_state()
    found = functional.kfac_expand(x, conv, keep=keep)
    assert torch.equal(found, functional.kfac_expand(x, conv))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("approx", sorted(FACTORS))
@pytest.mark.parametrize(
    ("options", "argument", "error"),
    [
        ({"keep": 0.5}, "keep", TypeError),
        ({"keep": {"n": "half"}}, "keep['n']", TypeError),
        ({"keep": {"n": 0.0}}, "keep['n']", ValueError),
        ({"keep": {"n": 1.5}}, "keep['n']", ValueError),
        ({"keep": {"ci": 0.5}}, "keep", ValueError),
        ({"keep": {"n": 0.5}, "sampler": "uniform"}, "sampler", ValueError),
        ({"keep": {"n": 0.5}, "generator": 3}, "generator", TypeError),
    ],
)
def test_bad_input(
    approx: str, options: dict[str, Any], argument: str, error: Any
) -> None:
    conv, x = Conv.make(2, 2, 2, input_size=(3,)), noise_tensor([4, 2, 3])
    with pytest.raises(error) as raised:
        FACTORS[approx](x, conv, **options)
    assert_in_form(raised.value, f"kfac_{approx}", argument)
