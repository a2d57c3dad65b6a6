"""Symmetric matrices as rectangles of half their size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tn_extensions.kronecker.cholesky_inverse import CholeskyInverse
from tn_extensions.kronecker.square import put_below


@dataclass(frozen=True)
class Triangle:
    """A Cholesky decomposition apart from the square that it lies in.

    Args:
        rows: The triangle, packed.
        pivots: ``[G, D]``.
    """

    rows: Tensor
    pivots: Tensor

    @classmethod
    def of(cls, inverse: CholeskyInverse) -> Triangle:
        """That of an inverse."""
        return cls(pack(inverse.square.mT), inverse.pivots)

    def below(self, matrices: Tensor) -> CholeskyInverse:
        """The inverse, put below the diagonals of matrices, in place."""
        return CholeskyInverse(put_below(matrices, unpack(self.rows)), self.pivots)


def pack(matrices: Tensor) -> Tensor:
    """The upper triangles of matrices ``[G, D, D]``, as ``[G, ceil(D / 2), D + 1]``.

    A row of the upper half and its counterpart of the lower half, counted from the
    end, fill a row. (Of an odd number of rows, the middle one is held twice.)
    """
    groups, size, _ = matrices.shape
    half = (size + 1) // 2
    packed = matrices.new_zeros(groups, half, size + 1)
    packed[:, :, 1:] = matrices[:, :half].triu()
    packed[:, :, :-1] += matrices[:, size - half :].flip(1, 2).tril()
    return packed


def unpack(packed: Tensor) -> Tensor:
    """The inverse of :func:`pack`."""
    groups, half, width = packed.shape
    size = width - 1
    matrices = packed.new_zeros(groups, size, size)
    matrices[:, size - half :] = packed[:, :, :-1].tril().flip(1, 2)
    matrices[:, :half] = packed[:, :, 1:].triu()
    below = torch.tril(matrices.mT, -1)
    return matrices.add_(below)
