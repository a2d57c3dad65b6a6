"""Input derivatives of modules, right for all of their hyper-parameters.

All maps here are linear in their input, so one transposed Jacobian per module serves
both of BackPACK's ways of backpropagating curvature.
"""

from __future__ import annotations

from abc import abstractmethod
from math import ceil, floor
from typing import Any

import torch
from backpack.core.derivatives.basederivatives import BaseDerivatives
from torch import Tensor

from tn_extensions.conv import Conv, PaddingMode
from tn_extensions.errors import describe


class LinearDerivatives(BaseDerivatives):
    """Derivatives of a map that is linear in its input, sample by sample."""

    @abstractmethod
    def input_vjp(self, module: Any, g: Tensor) -> Tensor:
        """Apply the transposed input Jacobian to a batch of output-shaped vectors.

        Args:
            module: Module with ``input0`` and ``output`` of a forward pass.
            g: Vectors, ``[B, *output.shape[1:]]`` for any ``B``.

        Returns:
            Products, ``[B, *input0.shape[1:]]``.
        """

    def hessian_is_zero(self, module: Any) -> bool:
        """A linear map has no curvature of its own."""
        return True

    def _jac_t_mat_prod(
        self,
        module: Any,
        g_inp: tuple[Tensor, ...],
        g_out: tuple[Tensor, ...],
        mat: Tensor,
        subsampling: list[int] | None = None,
    ) -> Tensor:
        """Backpropagate a square root of the GGN, ``[V, N, ...]``."""
        columns = mat.shape[:2]
        return self.input_vjp(module, mat.flatten(0, 1)).unflatten(0, columns)

    def ea_jac_t_mat_jac_prod(
        self,
        module: Any,
        g_inp: tuple[Tensor, ...],
        g_out: tuple[Tensor, ...],
        mat: Tensor,
    ) -> Tensor:
        """Backpropagate a batch-averaged GGN block, ``J^T M J``."""
        shape = module.output.shape[1:]
        half = self.input_vjp(module, mat.unflatten(-1, shape)).flatten(1)
        return self.input_vjp(module, half.T.unflatten(-1, shape)).flatten(1).T


class ConvDerivatives(LinearDerivatives):
    """Derivatives of (transposed) convolutions, all padding modes and groups."""

    def input_vjp(self, module: Any, g: Tensor) -> Tensor:
        """Apply the transposed Jacobian by torch's native kernel.

        Padding that is uneven or holds data is made explicit; its adjoint adds what the
        padding copied back to where it came from.
        """
        conv = conv_of(module)
        even = all(left == right for left, right in conv.padding)
        explicit = conv.padding_mode != "zeros" or not even
        padded = conv.explicitly_padded if explicit and not conv.transposed else conv
        weight = module.weight.detach().to(g.dtype)
        result, _, _ = torch.ops.aten.convolution_backward(
            g.contiguous(),
            # torch asks for the input but reads its shape only
            g.new_empty(1).expand(g.shape[0], conv.in_channels, *padded.input_size),
            weight,
            None,
            list(conv.stride),
            [left for left, _ in padded.padding],
            list(conv.dilation),
            conv.transposed,
            list(conv.output_padding),
            conv.groups,
            [True, False, False],
        )
        if padded is conv:
            return result
        for axis, dim in enumerate(conv.dims, start=2):
            result = _unpad(
                result, axis, dim.input_size, dim.padding, conv.padding_mode
            )
        return result


def conv_of(module: Any) -> Conv:
    """Hyper-parameters of a convolution that ran a forward pass."""
    return Conv.from_module(module, module.input0.shape[2:], module.output.shape[2:])


def _unpad(
    padded: Tensor, axis: int, size: int, padding: tuple[int, int], mode: PaddingMode
) -> Tensor:
    """Adjoint of padding an axis."""
    left, right = padding
    inner = padded.narrow(axis, left, size)
    if mode == "zeros" or not (left or right):
        return inner
    positions = torch.arange(-left, size + right, device=padded.device)
    if mode == "circular":
        source = positions % size
    elif mode == "replicate":
        source = positions.clamp(0, size - 1)
    else:
        last = size - 1
        source = last - (last - positions.abs()).abs()
    shape = list(padded.shape)
    shape[axis] = size
    return padded.new_zeros(shape).index_add_(axis, source, padded)


class AdaptiveAvgPoolDerivatives(LinearDerivatives):
    """Derivatives of adaptive average pooling in any number of dimensions."""

    def input_vjp(self, module: Any, g: Tensor) -> Tensor:
        """Spread each output evenly over the positions that it averages."""
        sizes = zip(module.input0.shape[2:], module.output.shape[2:], strict=True)
        for axis, (size, count) in enumerate(sizes, start=2):
            averages = g.new_zeros(count, size)
            for row in range(count):
                start = floor(row * size / count)
                stop = ceil((row + 1) * size / count)
                averages[row, start:stop] = 1 / (stop - start)
            g = (g.movedim(axis, -1) @ averages).movedim(-1, axis)
        return g


class BatchNormDerivatives(LinearDerivatives):
    """Derivatives of batch normalisation.

    With fixed statistics it scales each channel. With those of the batch it couples the
    samples: all columns of one ``v`` are then backpropagated jointly, as automatic
    differentiation does, and what this mixes is an approximation of the GGN. A
    batch-averaged GGN (KFRA) cannot be propagated then.
    """

    def input_vjp(self, module: Any, g: Tensor) -> Tensor:
        """Scale the channels; only with fixed statistics."""
        if _uses_batch_statistics(module):
            raise NotImplementedError(
                describe(
                    "KFRA",
                    type(module).__name__,
                    "use its running statistics",
                    "those of the batch",
                    "Call module.eval(), or use KFAC or KFLR",
                )
            )
        scale = _scale(module, torch.rsqrt(module.running_var + module.eps))
        return g * _per_channel(scale, g)

    def _jac_t_mat_prod(
        self,
        module: Any,
        g_inp: tuple[Tensor, ...],
        g_out: tuple[Tensor, ...],
        mat: Tensor,
        subsampling: list[int] | None = None,
    ) -> Tensor:
        if not _uses_batch_statistics(module):
            return super()._jac_t_mat_prod(module, g_inp, g_out, mat, subsampling)
        x = module.input0.detach()
        axes = [0, *range(2, x.dim())]
        var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        inverse = torch.rsqrt(var + module.eps)
        normalized = (x - mean) * inverse
        columns = [axis + 1 for axis in axes]
        centered = mat - mat.mean(columns, keepdim=True)
        centered -= normalized * (mat * normalized).mean(columns, keepdim=True)
        return centered * _per_channel(_scale(module, inverse.flatten()), x)


def _uses_batch_statistics(module: Any) -> bool:
    return bool(module.training) or module.running_mean is None


def _scale(module: Any, inverse: Tensor) -> Tensor:
    return inverse if module.weight is None else inverse * module.weight.detach()


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 2))
