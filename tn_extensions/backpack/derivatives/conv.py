"""Derivatives of convolutions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from backpack.core.derivatives.basederivatives import BaseParameterDerivatives
from torch import Tensor

from tn_extensions import functional
from tn_extensions.backpack.columns import Columns
from tn_extensions.backpack.derivatives.linear import LinearDerivatives
from tn_extensions.backpack.layout import channels_last
from tn_extensions.conv import Conv


class ConvDerivatives(LinearDerivatives, BaseParameterDerivatives):
    """Derivatives of ``Conv1d/2d/3d`` and ``ConvTranspose1d/2d/3d``.

    Supports groups, every ``padding_mode``, ``'same'`` with unequal sides,
    ``output_padding``, and an ``output_size`` that is passed to ``forward``.
    """

    def input_jvp(self, module: Any, x_dot: Tensor) -> Tensor:
        """Apply the Jacobian."""
        weight = module.weight.detach().to(x_dot.dtype)
        return functional.input_jvp(weight, x_dot, _conv_of(module)).to(x_dot.dtype)

    def input_vjp(self, module: Any, g: Tensor) -> Tensor:
        """Apply the transposed Jacobian."""
        weight = module.weight.detach().to(g.dtype)
        if g.numel() >= weight.numel() / 2:  # else rearranging the kernel dominates
            g = channels_last(g)
        return functional.input_vjp(weight, g, _conv_of(module)).to(g.dtype)

    def squared_input_vjp(self, module: Any, h: Tensor) -> Tensor:
        """Apply the transposed Jacobian with squared entries."""
        weight = module.weight.detach().to(h.dtype)
        return functional.diagonal_backward(weight, h, _conv_of(module)).to(h.dtype)

    def _weight_jac_mat_prod(
        self, module: Any, g_inp: Any, g_out: Any, mat: Tensor
    ) -> Tensor:
        """Apply the kernel's Jacobian to ``[V, *weight.shape]``."""
        x, conv = module.input0.detach().to(mat.dtype), _conv_of(module)
        axis, groups = _output_channels(conv)
        products = []
        growth = module.output.numel() / module.weight.numel()
        for piece in _pieces(mat, conv, growth):
            kernels = _joined(piece, axis, groups)
            product = functional.weight_jvp(x, kernels, _widened(conv, len(piece)))
            products.append(_split(product, 1, conv.groups, len(piece)))
        return torch.cat(products)

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
        axis, groups = _output_channels(conv)
        products = []
        for piece in _pieces(mat, conv):
            g = _joined(piece, 1, conv.groups)
            product = functional.weight_vjp(x, g, _widened(conv, len(piece)))
            products.append(_split(product, axis, groups, len(piece)))
        return torch.cat(products)

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


def _pieces(mat: Tensor, conv: Conv, growth: float = 1.0) -> Iterable[Tensor]:
    """Cut vectors into pieces, each of which is multiplied at once."""
    if conv.in_channels == conv.groups:  # torch is fast only with one output per input
        return mat.split(1)
    return Columns([mat]).take(growth)


def _widened(conv: Conv, num_vectors: int) -> Conv:
    """Create a convolution with a set of output channels for each vector."""
    return replace(conv, out_channels=conv.out_channels * num_vectors)


def _output_channels(conv: Conv) -> tuple[int, int]:
    """Return the kernel's axis of output channels and the number of groups on it."""
    return (1, 1) if conv.transposed else (0, conv.groups)


def _joined(vectors: Tensor, axis: int, groups: int) -> Tensor:
    """Move vectors into channels: ``[V, ..., G * C]`` to ``[..., G * V * C]``."""
    channels = vectors.unflatten(axis + 1, (groups, -1))
    return channels.movedim(0, axis + 1).flatten(axis, axis + 2)


def _split(products: Tensor, axis: int, groups: int, num_vectors: int) -> Tensor:
    """Undo :func:`_joined`."""
    channels = products.unflatten(axis, (groups, num_vectors, -1))
    return channels.movedim(axis + 1, 0).flatten(axis + 1, axis + 2)


def _conv_of(module: Any) -> Conv:
    """Read the hyper-parameters of a module that ran a forward pass.

    The shape of its output reveals an ``output_size`` that was passed to ``forward``.
    """
    return Conv.from_module(module, module.input0.shape[2:], module.output.shape[2:])
