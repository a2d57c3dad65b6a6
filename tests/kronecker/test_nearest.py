"""Closest Kronecker products, against the singular vectors of rearranged blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.strategies import noise_tensor
from tn_extensions import memory_budget
from tn_extensions.kronecker.nearest import gradient_products, nearest_products
from tn_extensions.layers.module import Use, kernel_matrices

DATA = 4
LAYERS = {
    "linear": (nn.Linear(4, 3), (4,)),
    "sequence": (nn.Linear(4, 3), (5, 4)),
    "1d": (nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, padding="same", groups=2), (4, 3, 4)),
    "depthwise": (nn.Conv2d(3, 3, 2, groups=3), (3, 3, 3)),
    "3d": (nn.Conv3d(2, 2, 2), (2, 3, 2, 3)),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (4, 2, 2)),
}


def gradients(module: Any, x: Tensor, g: Tensor, bias: bool) -> Tensor:
    """Gradients of single data by automatic differentiation, ``[G, n, CO, D]``."""
    found = []
    for own, vector in zip(x.split(1), g.split(1), strict=True):
        parameters = [module.weight, module.bias]
        weight, last = torch.autograd.grad(module(own), parameters, vector)
        groups = getattr(module, "groups", 1)
        transposed = groups if isinstance(module, nn.ConvTranspose2d) else None
        (matrices,) = kernel_matrices(weight[None], groups, transposed)
        column = last.reshape(*matrices.shape[:2], 1)
        found.append(torch.cat([matrices, column], 2) if bias else matrices)
    return torch.stack(found, 1)


def use_of(module: Any, x: Tensor) -> tuple[Use, Tensor]:
    """Make a use, and a gradient of its output."""
    output = module(x)
    return Use.of(module, x, output, "separate"), noise_tensor(output.shape) + 0.5


@pytest.mark.parametrize("budget", [1, 2**28])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("module", "shape"), LAYERS.values(), ids=LAYERS)
def test_closest(module: Any, shape: Any, bias: bool, budget: int) -> None:
    module, x = module.double(), noise_tensor((DATA, *shape)) + 0.3
    use, g = use_of(module, x)
    pairs = [(use, use.gradient(g))]

    def sweep(factors: Mapping[str, Tensor], is_left: bool) -> dict[str, Tensor]:
        (key,) = factors
        return {key: gradient_products(pairs, factors[key], is_left, bias)}

    groups, channels = use.conv.groups, use.conv.out_channels // use.conv.groups
    sizes = {"layer": (groups, channels)}
    with memory_budget(budget):
        lefts, rights = nearest_products(sweep, sizes, x, 1e-12, 2000)
    for n, own in enumerate(gradients(module, x, g, bias)):
        rearranged = torch.einsum("nia,njb->ijab", own, own).flatten(2).flatten(0, 1)
        left, values, right = torch.linalg.svd(rearranged, full_matrices=False)
        expected = values[0] * torch.outer(left[:, 0], right[0])
        mine = lefts["layer"][n], rights["layer"][n]
        found = torch.outer(*(factor.flatten() for factor in mine))
        assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(values[0]))
        for factor in mine:
            assert torch.linalg.eigvalsh(factor).min() > -1e-10 * values[0]


def test_uses_are_summed_before_they_are_multiplied() -> None:
    module = nn.Conv1d(2, 3, 2).double()
    inputs = [noise_tensor((DATA, 2, size)) for size in (4, 3)]
    found = [use_of(module, x) for x in inputs]
    both = zip(inputs, found, strict=True)
    own = sum(gradients(module, x, g, True)[0] for x, (_, g) in both)
    pairs = [(use, use.gradient(g)) for use, g in found]
    factor = noise_tensor((1, 3, 3))
    factor = factor @ factor.mT
    expected = torch.einsum("nia,ij,njb->ab", own, factor[0], own)
    assert_close(gradient_products(pairs, factor, True, True)[0], expected)


def test_zeros_and_several_blocks() -> None:
    """A block that has converged takes no part in further passes."""
    blocks = {"zero": torch.zeros(1, 2, 3).double(), "one": noise_tensor((1, 2, 3))}
    blocks["two"] = noise_tensor((5, 2, 3))
    asked: list[set[str]] = []

    def sweep(factors: Mapping[str, Tensor], is_left: bool) -> dict[str, Tensor]:
        asked.append(set(factors))
        equation = "nia,gij,njb->gab" if is_left else "nia,gab,njb->gij"
        return {
            key: torch.einsum(equation, blocks[key], own, blocks[key])
            for key, own in factors.items()
        }

    sizes = dict.fromkeys(blocks, (1, 2))
    lefts, rights = nearest_products(sweep, sizes, blocks["one"], 1e-9, 100)
    assert not lefts["zero"].any() and not rights["zero"].any()
    # a single gradient: the rearranged block is its Kronecker product with itself
    norm = torch.linalg.matrix_norm(blocks["one"][0], 2) ** 2
    found = torch.kron(lefts["one"][0], rights["one"][0])
    assert_close(torch.linalg.norm(found), norm)
    assert asked[0] == set(blocks) and asked[-1] == {"two"}
    with pytest.warns(UserWarning, match="after 3 passes"):
        nearest_products(sweep, sizes, blocks["one"], 1e-9, 3)
