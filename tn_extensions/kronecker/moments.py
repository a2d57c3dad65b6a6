"""Per-sample gradients, and their second moments in a Kronecker-factored basis."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tn_extensions import functional
from tn_extensions.compiler.budget import slices
from tn_extensions.kronecker.factors import vectors_of
from tn_extensions.kronecker.layers import Pairs, Use


def per_sample_gradients(pairs: Pairs, key: str) -> Tensor:
    """Gradients of a layer's parameter, summed over its uses, ``[N, *shape]``.

    Args:
        pairs: Uses, and gradients ``[N, C_out, P]`` of their outputs.
        key: ``"weight"`` or ``"bias"``.
    """

    def of_use(use: Use, g: Tensor) -> Tensor:
        shaped = g.unflatten(2, use.conv.output_size)
        if key == "bias":
            return functional.bias_per_sample_grad(shaped, use.conv)
        x, shaped = of_one_dtype(use.x, shaped)
        return functional.per_sample_grad(x, shaped, use.conv)

    return _sum(of_use(use, g) for use, g in pairs)


def of_one_dtype(x: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Convert tensors, of which autocast may have made one in half precision."""
    dtype = torch.promote_types(x.dtype, S.dtype)
    return x.to(dtype), S.to(dtype)


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    """Sum of new tensors, into the first of them."""
    first, *others = tensors
    for other in others:
        first += other
    return first


def bias_moments(pairs: Pairs, left: Tensor) -> Tensor:
    """``sum_n (Q_B^T g_n)^2`` of the gradients' sums over positions and uses.

    Args:
        pairs: Uses, and the gradients of their outputs, ``[N, C_out, P]``.
        left: ``Q_B``, ``[G, CO, s]``.

    Returns:
        Moments, ``[G, s, 1]``.
    """
    gradients = per_sample_gradients(pairs, "bias").to(left.dtype).unsqueeze(2)
    return (vectors_of(gradients, len(left)) @ left).square_().sum(1).unsqueeze(2)


def kernel_moments(pairs: Pairs, left: Tensor, right: Tensor, bias: bool) -> Tensor:
    """``sum_n (Q_B^T G_n Q_A)^2`` of the gradients ``G_n = sum g U^T`` over all uses.

    Args:
        pairs: Uses, and the gradients of their outputs, ``[N, C_out, P]``.
        left: ``Q_B``, ``[G, CO, s]``.
        right: ``Q_A``, ``[G, D, r]``.
        bias: Whether the last row of ``right`` is that of a joint bias.

    Returns:
        Moments, ``[G, s, r]``.
    """
    dtype = right.dtype
    layers = [
        (use.x.to(dtype), g.to(dtype).unflatten(2, use.conv.output_size), use.conv)
        for use, g in pairs
    ]
    (x, g, conv), *others = layers
    if not others:
        return functional.kfac_moments(x, g, right, left, conv, bias=bias)
    moments = left.new_zeros(len(left), left.shape[2], right.shape[2])
    for chunk in slices(len(g), moments.numel() * moments.element_size()):
        total = moments.new_zeros(chunk.stop - chunk.start, *moments.shape)
        for x, g, conv in layers:
            part = x[chunk], g[chunk]
            functional.rotated_grad(*part, right, left, conv, bias=bias, out=total)
        moments += total.square_().sum(0)
    return moments
