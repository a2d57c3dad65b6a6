"""Derivatives of maximum pooling."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

from tn_extensions.backpack.derivatives.linear import AnyDtype
from tn_extensions.backpack.layout import channels_last


class MaxPoolDerivatives(AnyDtype):
    """Derivatives of (adaptive) maximum pooling in any number of dimensions.

    Each output is a copy of an input; its position depends on the sample.
    """

    def hessian_is_zero(self, module: Any) -> bool:
        """Return true: a selection is piecewise linear."""
        return True

    def _jac_mat_prod(self, module: Any, g_inp: Any, g_out: Any, mat: Tensor) -> Tensor:
        """Propagate ``[V, N, ...]`` forward."""
        source = _selected(module, module.input0)
        result = mat.flatten(3).gather(3, source.expand(len(mat), -1, -1, -1))
        return result.view(len(mat), *module.output.shape)

    def _jac_t_mat_prod(
        self,
        module: Any,
        g_inp: tuple[Tensor, ...],
        g_out: tuple[Tensor, ...],
        mat: Tensor,
        subsampling: list[int] | None = None,
    ) -> Tensor:
        """Backpropagate ``[V, N, ...]``, such as a square root of the GGN."""
        x = module.input0 if subsampling is None else module.input0[subsampling]
        source = _selected(module, x)
        shape = (*mat.shape[:2], *x.shape[1:])
        result = mat.new_zeros(shape).flatten(3)
        result.scatter_add_(3, source.expand(len(mat), -1, -1, -1), mat.flatten(3))
        return result.view(shape)

    def ea_jac_t_mat_jac_prod(
        self,
        module: Any,
        g_inp: tuple[Tensor, ...],
        g_out: tuple[Tensor, ...],
        mat: Tensor,
    ) -> Tensor:
        """Backpropagate a batch-averaged GGN block, ``1/N sum_n J_n^T M J_n``."""
        x = module.input0
        num_channels, num_inputs = x.shape[1], x.shape[2:].numel()
        first = num_inputs * torch.arange(num_channels, device=x.device)
        result = mat.new_zeros(num_channels * num_inputs, num_channels * num_inputs)
        for source in (_selected(module, x) + first[:, None]).flatten(1):
            result.index_put_((source[:, None], source), mat, accumulate=True)
        return result / len(x)


def _selected(module: Any, x: Tensor) -> Tensor:
    """Find the flat input position of each output, ``[N, C, O]``."""
    # set the flag of a shallow copy, not of the user's module
    twin = copy(module)
    twin.return_indices = True
    # torch's kernels for this format are vectorised, and break ties in the same way
    _, indices = twin.forward(channels_last(x.detach()))
    return indices.flatten(2)
