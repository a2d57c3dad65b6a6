"""Derivatives of convolutions."""

from __future__ import annotations

from typing import Any

import torch
from backpack.core.derivatives.basederivatives import BaseParameterDerivatives
from torch import Tensor

from tn_extensions import functional
from tn_extensions.backpack.derivatives.linear import LinearDerivatives
from tn_extensions.backpack.layout import channels_last
from tn_extensions.conv import Conv


class ConvDerivatives(LinearDerivatives, BaseParameterDerivatives):
    """Derivatives of ``Conv1d/2d/3d`` and ``ConvTranspose1d/2d/3d``.

    One class for all: groups, every ``padding_mode``, ``'same'`` with unequal sides,
    ``output_padding``, and an ``output_size`` that was given to the forward pass.
    """

    def input_jvp(self, module: Any, x_dot: Tensor) -> Tensor:
        """Apply the Jacobian."""
        weight = module.weight.detach().to(x_dot.dtype)
        return functional.input_jvp(weight, x_dot, _conv_of(module)).to(x_dot.dtype)

    def input_vjp(self, module: Any, g: Tensor) -> Tensor:
        """Apply the transposed Jacobian."""
        weight = module.weight.detach().to(g.dtype)
        if g.numel() >= weight.numel() / 2:  # else it is the kernel that is rearranged
            g = channels_last(g)
        return functional.input_vjp(weight, g, _conv_of(module)).to(g.dtype)

    def squared_input_vjp(self, module: Any, h: Tensor) -> Tensor:
        """Apply the transposed Jacobian, its entries squared."""
        weight = module.weight.detach().to(h.dtype)
        return functional.diagonal_backward(weight, h, _conv_of(module)).to(h.dtype)

    def _weight_jac_mat_prod(
        self, module: Any, g_inp: Any, g_out: Any, mat: Tensor
    ) -> Tensor:
        """Apply the kernel's Jacobian to ``[V, *weight.shape]``."""
        x, conv = module.input0.detach().to(mat.dtype), _conv_of(module)
        return torch.stack([functional.weight_jvp(x, column, conv) for column in mat])

    def _weight_jac_t_mat_prod(
        self,
        module: Any,
        g_inp: Any,
        g_out: Any,
        mat: Tensor,
        sum_batch: bool = True,
        subsampling: list[int] | None = None,
    ) -> Tensor:
        """Apply the kernel's transposed Jacobian to ``[V, N, C_out, O1, ...]``."""
        x, conv = module.input0.detach().to(mat.dtype), _conv_of(module)
        if subsampling is not None:
            x = x[subsampling]
        if not sum_batch:
            return functional.per_sample_grad(x, mat, conv)
        return torch.stack([functional.weight_vjp(x, column, conv) for column in mat])

    def _bias_jac_mat_prod(
        self, module: Any, g_inp: Any, g_out: Any, mat: Tensor
    ) -> Tensor:
        """Apply the bias' Jacobian to ``[V, C_out]``."""
        output = module.output
        per_channel = mat.view(len(mat), 1, -1, *[1] * (output.dim() - 2))
        return per_channel.expand(-1, *output.shape)

    def _bias_jac_t_mat_prod(
        self,
        module: Any,
        g_inp: Any,
        g_out: Any,
        mat: Tensor,
        sum_batch: bool = True,
        subsampling: list[int] | None = None,
    ) -> Tensor:
        """Apply the bias' transposed Jacobian to ``[V, N, C_out, O1, ...]``."""
        products = functional.bias_per_sample_grad(mat, _conv_of(module))
        return products.sum(1) if sum_batch else products


def _conv_of(module: Any) -> Conv:
    """Hyper-parameters of a convolution that ran a forward pass.

    Args:
        module: Module with ``input0`` and ``output`` of a forward pass.

    Returns:
        The convolution. The output's shape tells an ``output_size`` given to forward.
    """
    return Conv.from_module(module, module.input0.shape[2:], module.output.shape[2:])
