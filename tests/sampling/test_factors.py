"""Kronecker factors estimated from some of the samples, as docs/dropout.md shows."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.reference.jacobian import kfac_factor
from tests.strategies import examples, module_input, modules, noise_tensor
from tn_extensions import Conv, functional, quantities
from tn_extensions.padding import pad
from tn_extensions.sampling import SAMPLERS, Sampled, Sampler, draw, sample

DEFINED = {"expand": quantities.kfac_expand, "reduce": quantities.kfac_reduce}
FACTORS = {"expand": functional.kfac_expand, "reduce": functional.kfac_reduce}
SHARE = 0.6


def estimated(
    x: Tensor, conv: Conv, approx: str, sampler: Sampler, generator: torch.Generator
) -> tuple[Sampled, Tensor]:
    """Return a draw, and the factor with the last row and column for a bias."""
    count, num_outputs = len(x), prod(conv.output_size)
    ones = num_outputs if approx == "reduce" else 1
    scale = 1 / (count * ones**2)
    x = pad(x, conv)
    conv = conv.explicitly_padded if conv.pads_explicitly else conv
    network = DEFINED[approx](conv, count)
    drawn = sample(
        network, {"n": SHARE}, sampler=sampler, generator=generator, tensors={"x": x}
    )
    factor = scale * drawn.run({"x": x})
    total = Sampled(quantities.patch_total(conv, count), drawn.draws).run({"x": x})
    column = (scale * ones * total)[:, :, None]
    corner = scale * ones * num_outputs * float(drawn.draws["n"].factors.sum())
    row = torch.nn.functional.pad(column.mT, (0, 1), value=corner)
    return drawn, torch.cat([torch.cat([factor, column], 2), row], 1)


@examples(60)
@given(case=st.data())
def test_every_convolution(case: st.DataObject) -> None:
    """Each kept sample counts by the inverse of its probability."""
    module, sizes = case.draw(modules())
    approx = case.draw(st.sampled_from(sorted(FACTORS)))
    sampler = case.draw(st.sampled_from(SAMPLERS))
    count, seed = case.draw(st.sampled_from([1, 2, 5])), case.draw(st.integers(0, 20))
    x = module_input(module, sizes, count)
    conv = Conv.from_module(module, x.shape[2:])
    own = torch.Generator()
    drawn, found = estimated(x, conv, approx, sampler, own.manual_seed(seed))
    # factors are quadratic, so samples are drawn by squared norms
    norms = pad(x, conv).flatten(1).square().sum(1)
    kept = draw(count, SHARE, sampler, own.manual_seed(seed), norms)
    assert torch.equal(drawn.draws["n"].indices, kept.indices)
    expected = sum(
        factor * kfac_factor(module, x[n : n + 1], approx, bias=True) / count
        for n, factor in zip(kept.indices.tolist(), kept.factors, strict=True)
    )
    assert_close(found, torch.zeros_like(found) + expected)
    if sampler == "fixed":  # one factor for all of them
        some, scale = x[kept.indices], kept.scale / count
        if approx == "reduce":
            scale /= prod(conv.output_size) ** 2
        assert_close(FACTORS[approx](some, conv, bias=True, scale=scale), found)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_unbiased(sampler: Any) -> None:
    """The mean of many draws is within four standard errors."""
    conv = Conv.make(2, 2, 2, input_size=(3,))
    x = noise_tensor([4, 2, 3]) * torch.arange(4)[:, None, None]
    expected = functional.kfac_expand(x, conv)
    own = torch.Generator().manual_seed(0)
    network, known = quantities.kfac_expand(conv, 4), {"x": x}
    draws = torch.stack(
        [
            sample(network, {"n": 0.5}, sampler=sampler, generator=own, tensors=known)
            .run(known)
            .div(4)
            for _ in range(1000)
        ]
    )
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() <= 4 * error + 1e-12).all()
