"""Inverses by Cholesky decompositions that are stored below averages' diagonals."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from tn_extensions.kronecker.dense import DenseMatrix, SymmetricMatrix
from tn_extensions.kronecker.low_rank import LowRank
from tn_extensions.kronecker.span import Span
from tn_extensions.layers.host import is_finite


@dataclass(frozen=True)
class CholeskyInverse(SymmetricMatrix):
    """The inverse ``(L diag(pivots) L^T)^-1``, for each group.

    Args:
        square: Matrices ``[G, D, D]`` with ``L`` below their diagonals; ``L`` has ones
            on the diagonal. The upper triangles are not read. See
            :mod:`tn_extensions.kronecker.square`.
        pivots: Pivots, ``[G, D]``.
        span: Detects matrices of low rank, for which the inverse multiplies a basis.
    """

    square: Tensor
    pivots: Tensor
    span: Span = field(default_factory=Span, repr=False, compare=False)

    def __matmul__(self, matrices: Tensor) -> Tensor:
        return self.times(matrices.mT).mT

    def times(
        self,
        matrices: Tensor,
        left: Tensor | DenseMatrix | LowRank | CholeskyInverse | None = None,
    ) -> Tensor:
        """Compute ``left @ matrices @ self``; without ``left``, ``matrices @ self``."""
        split = self.span.split(matrices)
        if split is not None:
            basis, inner = split
            return (basis if left is None else left @ basis) @ self._solved(inner)
        if left is None:
            return self._solved(matrices.clone(memory_format=torch.contiguous_format))
        return self._solved((left @ matrices).contiguous())

    def dense(self) -> Tensor:
        """Compute the matrices, ``[G, D, D]``."""
        size = self.pivots.shape[1]
        one = torch.eye(size, dtype=self.pivots.dtype, device=self.pivots.device)
        found = self._solved(one.repeat(len(self.pivots), 1, 1))
        return (found + found.mT).mul_(0.5)

    def det(self) -> Tensor:
        """Compute the determinant of each group, ``[G]``."""
        return self.pivots.prod(1).reciprocal()

    def logdet(self) -> Tensor:
        """Compute the logarithm of the determinant of each group, ``[G]``."""
        return -self.pivots.log().sum(1)

    def _solved(self, found: Tensor) -> Tensor:
        # in place, in the memory layout of LAPACK
        self._solve(found.mT, upper=False)
        found.div_(self.pivots.unsqueeze(-2))
        self._solve(found.mT, upper=True)
        return found

    def _solve(self, columns: Tensor, upper: bool) -> None:
        triangle = self.square.mT if upper else self.square
        solve_triangular(
            triangle, columns, upper=upper, unitriangular=True, out=columns
        )

    def __getitem__(self, group: int) -> CholeskyInverse:
        return CholeskyInverse(self.square[group], self.pivots[group], self.span)

    @property
    def is_finite(self) -> bool:
        """Tell whether all entries are finite.

        It suffices to check pivots: an overflow in ``L`` makes a later pivot overflow.
        """
        return is_finite(self.pivots)
