"""Damped inverses of factors, and how damping is split between a layer's two."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from tn_extensions.kronecker.blocks import LowRank, Matrix
from tn_extensions.kronecker.factors import compact, diagonal, is_low_rank, trace
from tn_extensions.layers.host import holds

Damping = float | Tensor
"""Of all groups, or of each one, ``[G]``."""


def damped_inverse(
    factor: Tensor,
    damping: Damping,
    cholesky: Callable[[Tensor], Tensor] = torch.linalg.cholesky,
) -> Matrix:
    """``(factor + damping I)^-1`` of each group.

    Low-rank factors ``R``, those of few data, are inverted by their Gram matrix, which
    is smaller (Woodbury). The inverse goes on to use ``R``::

        (R^T R + d I)^-1 = (I - R^T (R R^T + d I)^-1 R) / d

    Args:
        factor: A matrix or a low-rank factor.
        damping: The damping ``d``.
        cholesky: The decomposition.

    Returns:
        A matrix ``[G, D, D]``, or what multiplies as one.

    Raises:
        torch.linalg.LinAlgError: If the damped factor is singular.
    """
    if not isinstance(damping, Tensor):
        damping = factor.new_full((1,), float(damping))
    damping = damping.to(factor.dtype).unsqueeze(1)
    if is_low_rank(factor) and not holds((damping > 0).all()):
        raise LinAlgError("a factor of few data is singular without damping")
    matrix = compact(factor).clone()
    diagonal(matrix).add_(damping)
    # by the same name, so that one is gone before the inverse takes as much memory
    matrix = cholesky(matrix)
    if not is_low_rank(factor):
        return torch.cholesky_inverse(matrix)
    damping = damping.unsqueeze(2)
    return LowRank(factor, -1, 1 / damping, matrix.mul_(damping.sqrt()))


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
    ratio = (a / b).sqrt()
    root = damping**0.5
    is_defined = (a >= 0) & (b > 0)
    found = (
        torch.where(is_defined, each.clamp(minimum), damping)
        for each in (root * ratio, root / ratio)
    )
    return next(found), next(found)
