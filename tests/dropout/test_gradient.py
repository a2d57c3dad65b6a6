"""Gradients of layers, of which the weight's is estimated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.dropout.cases import Spy, defined_weight_gradient, gradients
from tests.dropout.test_layers import saved
from tests.dropout.test_modules import conv
from tests.strategies import (
    noise_tensor,
)
from tn_extensions.dropout import (
    TensorDropoutConv2d,
    TensorDropoutLinear,
)
from tn_extensions.sampling import SAMPLERS, Sampler

KEEP: list[dict[str, float]] = [
    {"n": 0.5, "ci": 0.5, "i1": 0.7},
    {"i1": 0.5, "i2": 0.5},
    {"n": 0.5, "o1": 0.5},
    {"g": 0.5, "o2": 0.5},
]
MODES = ("zeros", "circular", "reflect")
PAIRS = [
    (SAMPLERS[(row + column) % len(SAMPLERS)], keep, mode)
    for row, keep in enumerate(KEEP)
    for column, mode in enumerate(MODES)
]
"""Any two of sampler, shares and padding meet; test_modules.py crosses all three."""


@pytest.mark.parametrize(("sampler", "keep", "mode"), PAIRS, ids=str)
def test_unbiased(sampler: Sampler, keep: dict[str, float], mode: str) -> None:
    """The end to end; each axis and sampler by itself is tested in tests/sampling."""
    layer = conv(keep, sampler=sampler, padding_mode=mode, groups=2).double()
    x = noise_tensor((4, 4, 5, 5))
    layer.eval()
    exact = gradients(layer, x)[2]
    layer.train()
    count = 400
    runs = torch.stack([gradients(layer, x)[2] for _ in range(count)])
    error = runs.std(0) / count**0.5
    assert bool(((runs.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all())
    assert bool((error > 0).all())


def test_double_use_adds_up() -> None:
    layer = TensorDropoutConv2d(4, 4, 3, padding=1, keep={"n": 0.5}).double()
    x = noise_tensor((4, 4, 6, 6))
    with Spy() as spy:
        found = gradients(nn.Sequential(layer, layer), x)
    first, second = spy.sampled
    assert len(spy.sampled) == 2
    plain = nn.Conv2d(4, 4, 3, padding=1).double()
    plain.load_state_dict(layer.state_dict())
    middle = plain(x).detach()
    g = torch.randn(
        found[0].shape,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    )
    late = defined_weight_gradient(plain, middle, second)
    with torch.no_grad():
        g_middle = nn.functional.conv_transpose2d(g, plain.weight, padding=1)
    early = first.run({"x": x, "g": g_middle})
    assert torch.allclose(found[2], early + late)


def test_saved_bytes_scale_with_the_shares() -> None:
    shares = {"n": 0.5, "ci": 0.5, "i1": 0.5}
    x = torch.rand(8, 32, 28, 28, requires_grad=True)
    for mode in ("zeros", "circular"):
        for names in (["n"], ["n", "ci"], ["n", "i1"], ["ci", "i1"], list(shares)):
            keep = {name: shares[name] for name in names}
            layer = TensorDropoutConv2d(
                32, 32, 3, padding=1, keep=keep, sampler="fixed", padding_mode=mode
            )
            expected = 0.5 ** len(names)
            assert saved(layer, x) / x.nbytes == pytest.approx(expected, rel=0.05)


def test_saved_bytes_of_linear_and_of_bernoulli_draws() -> None:
    x = torch.rand(64, 16, 64, requires_grad=True)
    keep = {"n": 0.5, "i1": 0.5, "ci": 0.5}
    layer = TensorDropoutLinear(64, 64, keep=keep, sampler="fixed")
    assert saved(layer, x) / x.nbytes == pytest.approx(0.125, rel=0.05)
    layer = TensorDropoutLinear(64, 64, keep=keep)
    mean = sum(saved(layer, x) for _ in range(300)) / 300
    assert mean / x.nbytes == pytest.approx(0.125, rel=0.05)


def test_second_derivatives_are_refused() -> None:
    layer = conv({"n": 0.5})
    x = torch.rand(4, 4, 6, 6, requires_grad=True)
    loss = layer(x).square().sum()
    (gradient,) = torch.autograd.grad(loss, layer.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
