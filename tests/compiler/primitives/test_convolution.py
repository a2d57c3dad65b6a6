"""Convolution: networks that torch has a kernel for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from torch.testing import assert_close

from tests.compiler.candidates import OTHERS, assert_all_evaluate, layer, target
from tests.strategies import BATCHES, convs, examples, noise_tensor
from tn_extensions import Conv, functional, quantities
from tn_extensions.compiler.primitives.convolution import convolve
from tn_extensions.network import simplify

LINEAR = ("conv", "weight_vjp", "input_vjp", "weight_jvp", "input_jvp")


@pytest.mark.parametrize("name", LINEAR)
@examples(50)
@given(convs(), BATCHES)
def test_every_convolution(name: str, conv: Conv, batch_size: int) -> None:
    network = getattr(quantities, name)(conv, batch_size)
    assert assert_all_evaluate(convolve, network) == 1


@pytest.mark.parametrize(
    ("name", "transposed", "kind"),
    [
        ("conv", False, "native convolution"),
        ("conv", True, "native transposed convolution"),
        ("weight_vjp", False, "native weight gradient"),
        ("weight_vjp", True, "native weight gradient"),
        ("input_vjp", False, "native transposed convolution"),
        ("input_vjp", True, "native convolution"),
    ],
)
def test_kinds(name: str, transposed: bool, kind: str) -> None:
    network = getattr(quantities, name)(layer(transposed=transposed), 2)
    (candidate,) = convolve(network, target())
    assert candidate.name == kind


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": (3,) * 4},
        {"kernel_size": 7, "padding": ((5, 0), (0, 6))},
        {"stride": 5},
    ],
)
def test_unusual(change: dict[str, Any]) -> None:
    conv = layer(**({"input_size": (6, 6)} | change))
    for name in LINEAR:
        candidates = list(convolve(getattr(quantities, name)(conv, 2), target()))
        assert len(candidates) == (conv.num_dims <= 3)


def test_other_networks_are_left_alone() -> None:
    for name, network in OTHERS.items():
        assert bool(list(convolve(network, target()))) == (name == "conv")
    # a view of an operand is not the tensor that torch would take
    strided = quantities.conv(layer(kernel_size=1, padding=0, stride=2), 2)
    assert list(convolve(strided, target()))
    assert not list(convolve(simplify(strided), target()))
    second = quantities.conv(layer(), 2).jacobian("weight").jacobian("x")
    assert not list(convolve(second, target()))


def test_gradients_of_single_samples_are_differentiable() -> None:
    network = quantities.per_sample_grad(layer(), 3)
    x, g = (noise_tensor((3, 2, 6, 6)).requires_grad_() for _ in range(2))
    candidates = {
        candidate.name: candidate for candidate in convolve(network, target())
    }
    unfolded = functional.unfold_input(x, layer())
    expected = torch.einsum("nko,nco->nck", unfolded, g.flatten(2))
    found = candidates["native weight gradient per n"].value({"x": x, "g": g})
    assert_close(found.flatten(2), expected)
    one, two = (
        torch.autograd.grad(each.square().sum(), (x, g)) for each in (found, expected)
    )
    assert_close(one, two)
