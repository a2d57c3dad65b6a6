"""Pack symmetric matrices into rectangles of half their size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tn_extensions.kronecker.cholesky_inverse import CholeskyInverse
from tn_extensions.kronecker.square import put_below


@dataclass(frozen=True)
class Triangle:
    """A Cholesky decomposition, packed instead of stored below another matrix.

    Args:
        rows: The packed triangle.
        pivots: Its pivots, ``[G, D]``.
    """

    rows: Tensor
    pivots: Tensor

    @classmethod
    def of(cls, inverse: CholeskyInverse) -> Triangle:
        """Pack the triangle of an inverse."""
        return cls(pack(inverse.square.mT), inverse.pivots)

    def below(self, matrices: Tensor) -> CholeskyInverse:
        """Unpack the triangle below the diagonals of matrices, in place."""
        return CholeskyInverse(put_below(matrices, unpack(self.rows)), self.pivots)


def pack(matrices: Tensor) -> Tensor:
    """Pack upper triangles of matrices ``[G, D, D]`` into ``[G, ceil(D / 2), D + 1]``.

    A packed row holds a row of the upper half and one of the lower half, counted from
    the end. With an odd number of rows, the middle one is stored twice.
    """
    groups, size, _ = matrices.shape
    half = (size + 1) // 2
    packed = matrices.new_zeros(groups, half, size + 1)
    packed[:, :, 1:] = matrices[:, :half].triu()
    packed[:, :, :-1] += matrices[:, size - half :].flip(1, 2).tril()
    return packed


def unpack(packed: Tensor) -> Tensor:
    """Undo :func:`pack`, and fill the lower triangles by symmetry."""
    groups, half, width = packed.shape
    size = width - 1
    matrices = packed.new_zeros(groups, size, size)
    matrices[:, size - half :] = packed[:, :, :-1].tril().flip(1, 2)
    matrices[:, :half] = packed[:, :, 1:].triu()
    below = torch.tril(matrices.mT, -1)
    return matrices.add_(below)
