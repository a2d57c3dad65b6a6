"""Embed: the rest of a network goes to where a pattern is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.compiler.candidates import (
    OTHERS,
    assert_all_evaluate,
    matched,
    target,
)
from tests.network.rules.identities import arrays_of
from tests.reference import dense
from tn_extensions import Conv, TensorNetwork, functional, quantities
from tn_extensions.compiler import plan
from tn_extensions.compiler.primitives.embed import embed
from tn_extensions.network import Pattern, simplify
from tn_extensions.network.build import build

METHOD = embed


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"dilation": 2, "padding": 3}, {"transposed": True}]
    + [{"kernel_size": (3, 2), "input_size": (4, 5)}],
)
def test_toeplitz_matrices(groups: int, options: dict[str, Any]) -> None:
    given = {"kernel_size": 3, "input_size": 6, "padding": 1} | options
    network = quantities.unfold_weight(Conv.make(4, 2, groups=groups, **given))
    assert assert_all_evaluate(METHOD, simplify(network)) == 1


@pytest.mark.parametrize("start", [-2, 0, 1, 5])
@pytest.mark.parametrize("stride", [1, 3])
def test_diagonals_of_any_position(stride: int, start: int) -> None:
    place = Pattern.of("j", {"i": stride}, start)
    network = build(
        {"a": ["i", "k"]}, "jki", {"i": 4, "j": 9, "k": 2}, [place], summed=()
    )
    assert assert_all_evaluate(METHOD, network) == 1


@pytest.mark.parametrize("start", [0, 2])
def test_single_places(start: int) -> None:
    network = build({"a": ["i"]}, "ji", {"i": 3, "j": 4}, [Pattern.of("j", {}, start)])
    assert assert_all_evaluate(METHOD, network) == 1


def test_what_is_outside_is_no_place() -> None:
    network = build({"a": ["i"]}, "ji", {"i": 3, "j": 4}, [Pattern.of("j", {}, 4)])
    assert assert_all_evaluate(METHOD, network) == 0


def test_matches_nothing_else() -> None:
    assert matched(METHOD) == set()
    assert len(OTHERS) > 3


def toeplitz(kernel_size: int, size: int) -> TensorNetwork:
    """Toeplitz matrix of a long kernel."""
    conv = Conv.make(2, 2, kernel_size, size, padding=kernel_size // 2)
    return quantities.unfold_weight(conv)


def test_no_pattern_is_held_for_long_kernels() -> None:
    network = toeplitz(512, 1024)
    assert plan(network).cost.peak < 4 * network.shape[0] * network.shape[1]
    small = toeplitz(64, 96)
    arrays = arrays_of(small)
    (way,) = METHOD(simplify(small), target())
    result = way.value({name: torch.from_numpy(x) for name, x in arrays.items()})
    expected = torch.from_numpy(dense.evaluate(small, arrays))
    torch.testing.assert_close(result, expected)


def test_is_differentiated_and_transformed() -> None:
    conv = Conv.make(2, 2, 9, 20, padding=4, stride=2)
    weight = torch.randn(conv.weight_shape, dtype=torch.float64)

    def total(w: torch.Tensor) -> torch.Tensor:
        return functional.unfold_weight(w, conv).square().sum()

    leaf = weight.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(total)(weight), expected)
    batch = torch.func.vmap(torch.func.grad(total))(torch.stack([weight, 2 * weight]))
    torch.testing.assert_close(batch, torch.stack([expected, 2 * expected]))
    ones = torch.func.jvp(total, (weight,), (torch.ones_like(weight),))[1]
    torch.testing.assert_close(ones, expected.sum())
