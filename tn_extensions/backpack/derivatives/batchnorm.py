"""Derivatives of batch normalisation."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from backpack.core.derivatives.basederivatives import BaseParameterDerivatives
from torch import Tensor, einsum
from torch.nn.functional import batch_norm

from tn_extensions.backpack.derivatives.linear import AnyDtype
from tn_extensions.errors import describe


class BatchNormDerivatives(AnyDtype, BaseParameterDerivatives):
    """Derivatives of batch normalisation in any number of dimensions.

    With fixed statistics, it scales each channel. With statistics of the batch (in
    train mode, or without running statistics), it couples the samples. The Jacobian of
    a channel with ``T`` entries, normalised inputs ``x`` and scale ``s`` is then ``s (I
    - 1/T (1 1^T + x x^T))`` over all samples and positions. In both cases, the Jacobian
    is symmetric.
    """

    def hessian_is_zero(self, module: Any) -> bool:
        """Tell whether the map is linear: it is, with fixed statistics."""
        return not uses_batch_statistics(module)

    def hessian_is_diagonal(self, module: Any) -> bool:
        """Tell whether the Hessian is diagonal: batch statistics couple the entries."""
        return not uses_batch_statistics(module)

    def _jac_mat_prod(self, module: Any, g_inp: Any, g_out: Any, mat: Tensor) -> Tensor:
        """Propagate ``[V, N, ...]`` forward: the Jacobian is symmetric."""
        return self._jac_t_mat_prod(module, g_inp, g_out, mat)

    def _residual_mat_prod(
        self, module: Any, g_inp: Any, g_out: tuple[Tensor, ...], mat: Tensor
    ) -> Tensor:
        """Apply the Hessian of ``sum(g_out * output)`` to ``[V, N, ...]``.

        With ``P = I - 1/T (1 1^T + x x^T)`` and ``r`` the inverse standard deviation,
        the derivative of ``s P g`` in direction ``v`` is
        ``-s r / T ((x^T v) P g + (x^T g) P v + (g^T P v) x)``.
        """
        x = module.input0.detach()
        if not uses_batch_statistics(module):
            return torch.zeros_like(mat)
        normalized, inverse = _normalize(module, x)
        axes = [1, *range(3, mat.dim())]
        g = g_out[0].detach().unsqueeze(0)

        def mean_product(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).mean(axes, keepdim=True)

        projected = _project(normalized, mat)
        result = mean_product(normalized, mat) * _project(normalized, g)
        result += mean_product(normalized, g) * projected
        result += mean_product(g, projected) * normalized
        return result * _per_channel(-inverse * _times_weight(inverse, module), x)

    def _jac_t_mat_prod(
        self,
        module: Any,
        g_inp: tuple[Tensor, ...],
        g_out: tuple[Tensor, ...],
        mat: Tensor,
        subsampling: list[int] | None = None,
    ) -> Tensor:
        """Backpropagate ``[V, N, ...]``, all samples of a ``v`` jointly."""
        x = module.input0.detach()
        if not uses_batch_statistics(module):
            return mat * _per_channel(_fixed_scale(module), x)
        if subsampling is not None:
            raise NotImplementedError(
                describe(
                    "BatchNormDerivatives",
                    "subsampling",
                    "be None with batch statistics, which couple all samples",
                    subsampling,
                    "Call module.eval()",
                )
            )
        normalized, inverse = _normalize(module, x)
        scale = _times_weight(inverse, module)
        return _project(normalized, mat) * _per_channel(scale, x)

    def ea_jac_t_mat_jac_prod(
        self,
        module: Any,
        g_inp: tuple[Tensor, ...],
        g_out: tuple[Tensor, ...],
        mat: Tensor,
    ) -> Tensor:
        """Backpropagate a batch-averaged GGN block.

        The result is ``1/N sum_{n,m} J_nm^T M J_nm``, where ``J_nm`` is the Jacobian of
        the output of sample ``n`` by the input of sample ``m``.
        """
        x = module.input0.detach()
        num_data, num_channels = x.shape[:2]
        blocks = mat.reshape(2 * (num_channels, x.shape[2:].numel()))
        if uses_batch_statistics(module):
            normalized, inverse = _normalize(module, x)
            scale = _times_weight(inverse, module)
            flat = normalized.reshape(num_data, num_channels, -1)
            # J_nm = s (delta_nm I - u_n u_m^T), a row of u for each position
            total = flat.numel() // num_channels
            u = torch.stack([torch.ones_like(flat), flat], dim=-1) / sqrt(total)
            mean = einsum("ncpa,ncqa->cpq", u, u) / num_data
            inner = einsum("ncpa,cpdq,ndqb->cdab", u, blocks, u) / num_data
            blocks = (
                blocks
                - einsum("cpr,crdq->cpdq", mean, blocks)
                - einsum("cpdr,drq->cpdq", blocks, mean)
                + einsum("ncpa,cdab,ndqb->cpdq", u, inner, u)
            )
        else:
            scale = _fixed_scale(module)
        scaled = blocks * scale.view(-1, 1, 1, 1) * scale.view(-1, 1)
        return scaled.reshape(mat.shape)

    def _weight_jac_mat_prod(
        self, module: Any, g_inp: Any, g_out: Any, mat: Tensor
    ) -> Tensor:
        """Apply the weight's Jacobian to ``[V, C]``."""
        normalized = input_of_weight(module, mat.dtype)
        return normalized * mat.view(len(mat), 1, -1, *[1] * (normalized.dim() - 2))

    def _weight_jac_t_mat_prod(
        self,
        module: Any,
        g_inp: Any,
        g_out: Any,
        mat: Tensor,
        sum_batch: bool = True,
        subsampling: list[int] | None = None,
    ) -> Tensor:
        """Apply the weight's transposed Jacobian to ``[V, N, C, ...]``."""
        normalized = input_of_weight(module, mat.dtype)
        if subsampling is not None:
            normalized = normalized[subsampling]
        equation = f"vnc...,nc...->v{'' if sum_batch else 'n'}c"
        return einsum(equation, mat, normalized)

    def _bias_jac_mat_prod(
        self, module: Any, g_inp: Any, g_out: Any, mat: Tensor
    ) -> Tensor:
        """Apply the bias' Jacobian to ``[V, C]``."""
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
        """Apply the bias' transposed Jacobian to ``[V, N, C, ...]``."""
        per_sample = mat.flatten(3).sum(3) if mat.dim() > 3 else mat
        return per_sample.sum(1) if sum_batch else per_sample


def uses_batch_statistics(module: Any) -> bool:
    """Tell whether statistics of the batch are used, which couples the samples."""
    return bool(module.training) or module.running_mean is None


def _fixed_scale(module: Any) -> Tensor:
    return _times_weight(torch.rsqrt(module.running_var + module.eps), module)


def input_of_weight(module: Any, dtype: torch.dtype) -> Tensor:
    """Compute the normalised input, which is multiplied by the weight."""
    x = module.input0.detach().to(dtype)
    if uses_batch_statistics(module):
        return _normalize(module, x)[0]
    mean, var = (v.to(dtype) for v in (module.running_mean, module.running_var))
    return batch_norm(x, mean, var, eps=module.eps)


def _normalize(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the normalised input and each channel's inverse standard deviation."""
    axes = [0, *range(2, x.dim())]
    var, mean = torch.var_mean(x, axes, correction=0)
    inverse = torch.rsqrt(var + module.eps)
    return (x - _per_channel(mean, x)) * _per_channel(inverse, x), inverse


def _project(normalized: Tensor, mat: Tensor) -> Tensor:
    """Apply ``I - 1/T (1 1^T + x x^T)`` to ``[V, N, ...]``."""
    axes = [1, *range(3, mat.dim())]
    centered = mat - mat.mean(axes, keepdim=True)
    centered -= normalized * (mat * normalized).mean(axes, keepdim=True)
    return centered


def _times_weight(inverse: Tensor, module: Any) -> Tensor:
    return inverse if module.weight is None else inverse * module.weight.detach()


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 2))
