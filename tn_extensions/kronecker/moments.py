"""Second moments of per-sample gradients in a Kronecker-factored basis."""

from __future__ import annotations

from torch import Tensor

from tn_extensions import functional
from tn_extensions.compiler.budget import slices
from tn_extensions.kronecker.factors import vectors_of
from tn_extensions.layers.gradients import per_sample_gradients
from tn_extensions.layers.module import Pairs


def bias_moments(pairs: Pairs, left: Tensor) -> Tensor:
    """Compute ``sum_n (Q_B^T g_n)^2`` for sums ``g_n`` over positions and uses.

    Args:
        pairs: Uses, and the gradients of their outputs, ``[N, C_out, P]``.
        left: ``Q_B``, ``[G, CO, s]``.

    Returns:
        Moments, ``[G, s, 1]``.
    """
    gradients = per_sample_gradients(pairs, "bias").to(left.dtype).unsqueeze(2)
    return (vectors_of(gradients, len(left)) @ left).square_().sum(1).unsqueeze(2)


def kernel_moments(pairs: Pairs, left: Tensor, right: Tensor, bias: bool) -> Tensor:
    """Compute ``sum_n (Q_B^T G_n Q_A)^2`` for gradients ``G_n = sum g U^T``.

    ``G_n`` is summed over positions and uses.

    Args:
        pairs: Uses, and the gradients of their outputs, ``[N, C_out, P]``.
        left: ``Q_B``, ``[G, CO, s]``.
        right: ``Q_A``, ``[G, D, r]``.
        bias: Whether the last row of ``right`` belongs to a joint bias.

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
