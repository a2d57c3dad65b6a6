"""Damped inverses of factors, and how damping is split between a layer's two."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tn_extensions.kronecker.dense import DenseMatrix
from tn_extensions.kronecker.factors import is_low_rank, trace
from tn_extensions.kronecker.low_rank import LowRank

Damping = float | Tensor
"""Of all groups, or of each one, ``[G]``."""


def damped_inverse(
    factor: Tensor,
    damping: Damping,
    cholesky: Callable[[Tensor], Tensor] = torch.linalg.cholesky,
) -> Tensor | LowRank:
    """Compute ``(factor + damping I)^-1`` of each group.

    Args:
        factor: A matrix or a low-rank factor.
        damping: The damping.
        cholesky: The decomposition.

    Returns:
        A matrix ``[G, D, D]``, or what multiplies as one.

    Raises:
        torch.linalg.LinAlgError: If the damped factor is singular.
    """
    if is_low_rank(factor):
        return LowRank(factor).inverse(damping, cholesky)
    return DenseMatrix(factor).inverse(damping, cholesky)


def split_damping(
    right: Tensor, left: Tensor, damping: float, minimum: float
) -> tuple[Tensor, Tensor]:
    """Damping of ``A`` and ``B`` of each group, whose product is the given one.

    ``pi sqrt(damping)`` and ``sqrt(damping) / pi``, ``pi^2`` being the ratio of the
    factors' mean eigenvalues (Martens & Grosse, 2015, section 6.3).

    Args:
        right: ``A``.
        left: ``B``.
        damping: The product.
        minimum: The least value of each.
    """
    a, b = (trace(factor) / factor.shape[-1] for factor in (right, left))
    return split_by_means(a, b, damping, minimum)


def split_by_means(
    a: Tensor, b: Tensor, damping: float, minimum: float
) -> tuple[Tensor, Tensor]:
    """Split damping as :func:`split_damping` does, by the mean eigenvalues, ``[G]``."""
    ratio = (a / b).sqrt()
    root = damping**0.5
    is_defined = (a >= 0) & (b > 0)
    found = (
        torch.where(is_defined, each.clamp(minimum), damping)
        for each in (root * ratio, root / ratio)
    )
    return next(found), next(found)
