"""Dense symmetric matrices, one for each group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tn_extensions.kronecker import factors


class SymmetricMatrix(ABC):
    """Symmetric matrices, with functions that form their entries."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Return the entries, ``[G, D, D]``."""

    def inverse(
        self,
        damping: float | Tensor = 0.0,
        cholesky: Callable[[Tensor], Tensor] = torch.linalg.cholesky,
    ) -> Tensor:
        """Compute ``(self + damping I)^-1``.

        Args:
            damping: The damping: one number, or one for each group, ``[G]``.
            cholesky: Function that computes the decomposition.

        Returns:
            The inverse, ``[G, D, D]``.

        Raises:
            torch.linalg.LinAlgError: If a damped matrix is not positive definite.
        """
        damped = self.dense().clone()
        shift = torch.as_tensor(damping, dtype=damped.dtype, device=damped.device)
        factors.diagonal(damped).add_(shift.reshape(-1, 1))
        # reuse the name: this frees the matrix before the inverse is allocated
        damped = cholesky(damped)
        return torch.cholesky_inverse(damped)

    def trace(self) -> Tensor:
        """Compute the trace of each group, ``[G]``."""
        return factors.diagonal(self.dense()).sum(1)

    def det(self) -> Tensor:
        """Compute the determinant of each group, ``[G]``."""
        return torch.linalg.det(self.dense())

    def logdet(self) -> Tensor:
        """Compute the logarithm of the determinant of each group, ``[G]``.

        It is minus infinity if a matrix is singular up to rounding.
        """
        return factors.logdet(self.dense())

    def frobenius_norm(self) -> Tensor:
        """Compute the Frobenius norm of each group, ``[G]``."""
        return self.dense().square().sum((1, 2)).sqrt()

    def eigh(self, complete: bool = True) -> tuple[Tensor, Tensor]:
        """Compute the eigendecomposition.

        Args:
            complete: Only for low-rank matrices; others always have all eigenvectors.

        Returns:
            Eigenvalues ``[G, D]`` and eigenvectors ``[G, D, D]``.
        """
        return factors.eigenbasis(self.dense())


@dataclass(frozen=True)
class DenseMatrix(SymmetricMatrix):
    """Symmetric matrices that are positive semi-definite.

    Args:
        entries: Entries, ``[G, D, D]``.
    """

    entries: Tensor

    def __matmul__(self, matrices: Tensor) -> Tensor:
        return self.entries @ matrices

    def times(self, matrices: Tensor) -> Tensor:
        """Compute ``matrices @ self``."""
        return matrices @ self.entries

    def __getitem__(self, group: int) -> DenseMatrix:
        return DenseMatrix(self.entries[group])

    def dense(self) -> Tensor:
        """Return the entries, ``[G, D, D]``."""
        return self.entries
