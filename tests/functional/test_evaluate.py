"""Results are laid out in order, whatever way of evaluating a plan chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.strategies import noise_tensor
from tn_extensions import Conv, functional

Quantity = Callable[[Tensor, Tensor, Conv], Tensor]

QUANTITIES: dict[str, Quantity] = {
    "per_sample_grad": lambda x, S, conv: functional.per_sample_grad(x, S[0], conv),
    "per_sample_grad of V": functional.per_sample_grad,
    "per_sample_grad_norm": functional.per_sample_grad_norm,
    "ggn_diagonal": functional.ggn_diagonal,
    "ggn_diagonal, per sample": lambda x, S, conv: functional.ggn_diagonal(
        x, S, conv, per_sample=True
    ),
    "ggn_gram": functional.ggn_gram,
    "ggn_matvec": lambda x, S, conv: functional.ggn_matvec(
        x, S, noise_tensor((2, *conv.weight_shape)), conv
    ),
    "kfac_expand": lambda x, S, conv: functional.kfac_expand(x, conv),
    "kfac_expand, bias": lambda x, S, conv: functional.kfac_expand(x, conv, bias=True),
    "kfac_reduce": lambda x, S, conv: functional.kfac_reduce(x, conv),
    "patch_mean": lambda x, S, conv: functional.patch_mean(x, conv),
    "unfold_input": lambda x, S, conv: functional.unfold_input(x, conv),
    "fold_output": lambda x, S, conv: functional.fold_output(
        functional.unfold_input(x, conv), conv
    ),
    "bias_per_sample_grad": lambda x, S, conv: functional.bias_per_sample_grad(S, conv),
    "bias_ggn_diagonal": lambda x, S, conv: functional.bias_ggn_diagonal(S, conv),
    "bias_ggn_gram": lambda x, S, conv: functional.bias_ggn_gram(S, conv),
}

CONVS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((7,), {"kernel_size": 3, "stride": 2}),
    ((5,), {"kernel_size": 1}),
    ((7,), {"kernel_size": 1, "stride": 3, "padding": 1}),
    ((6,), {"kernel_size": 3, "stride": 2, "groups": 2, "transposed": True}),
    ((4, 4), {"kernel_size": 2, "stride": 2}),
    ((4, 3), {"kernel_size": 1, "groups": 2}),
    ((4, 3), {"kernel_size": 1, "transposed": True}),
    ((3, 2, 2), {"kernel_size": 2, "stride": (1, 2, 1)}),
]


@pytest.mark.parametrize("name", list(QUANTITIES))
@pytest.mark.parametrize(("sizes", "options"), CONVS)
def test_results_are_contiguous(
    sizes: tuple[int, ...], options: dict[str, Any], name: str
) -> None:
    options = {"stride": 1, "padding": 0, "groups": 1, "transposed": False} | options
    size = options.pop("kernel_size")
    conv = Conv.make(4, 6, size, sizes, **options)
    x = noise_tensor((3, 4, *sizes))
    S = noise_tensor((2, 3, 6, *conv.output_size))
    result = QUANTITIES[name](x, S, conv)
    assert result.is_contiguous()
    # what is symmetric may be its transpose, but nothing else
    moved = QUANTITIES[name](x.mT.contiguous().mT, S.mT.contiguous().mT, conv)
    assert moved.is_contiguous()
    torch.testing.assert_close(moved, result)
