"""Types of the factors of a Kronecker product."""

from __future__ import annotations

from torch import Tensor

from tn_extensions.kronecker.cholesky_inverse import CholeskyInverse
from tn_extensions.kronecker.dense import DenseMatrix
from tn_extensions.kronecker.factors import is_low_rank
from tn_extensions.kronecker.low_rank import LowRank

Matrix = Tensor | LowRank | CholeskyInverse
"""A factor. A tensor is either a matrix ``[G, D, D]`` or a low-rank factor."""
Structured = DenseMatrix | LowRank | CholeskyInverse
"""A factor with methods."""


def structured(part: Matrix) -> Structured:
    """Wrap a tensor as ``DenseMatrix`` or ``LowRank``; return other factors as is."""
    if not isinstance(part, Tensor):
        return part
    return LowRank(part) if is_low_rank(part) else DenseMatrix(part)


def both_sides(
    left: Tensor | Structured, matrices: Tensor, right: Tensor | Structured | None
) -> Tensor:
    """Compute ``left X right`` for matrices ``X``, ``[G, CO, D, V]``."""
    groups, _, columns, vectors = matrices.shape
    if groups == vectors == 1:
        # without the batch axis: a batched product of one matrix is slower
        one = matrices[0, :, :, 0]
        if isinstance(right, CholeskyInverse):
            one = right[0].times(one, left[0])
        else:
            one = left[0] @ one
            if right is not None:
                one = _times(one, right[0])
        return one[None, :, :, None]
    product = (left @ matrices.flatten(2)).unflatten(2, (columns, vectors))
    if right is None:
        return product
    product = product.movedim(3, 1)
    rows = _times(product.reshape(groups, -1, columns), right)
    return rows.unflatten(1, product.shape[1:3]).movedim(1, 3)


def _times(matrices: Tensor, right: Tensor | Structured) -> Tensor:
    return matrices @ right if isinstance(right, Tensor) else right.times(matrices)
