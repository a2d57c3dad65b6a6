"""Dense symmetric matrices, one of each group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tn_extensions.kronecker import factors


class SymmetricMatrix(ABC):
    """Functions of symmetric matrices, by their entries."""

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
            damping: The damping, of all groups or of each one, ``[G]``.
            cholesky: The decomposition.

        Returns:
            The inverse, ``[G, D, D]``.

        Raises:
            torch.linalg.LinAlgError: If a damped matrix is not positive definite.
        """
        damped = self.dense().clone()
        shift = torch.as_tensor(damping, dtype=damped.dtype, device=damped.device)
        factors.diagonal(damped).add_(shift.reshape(-1, 1))
        # by the same name, so that one is gone before the inverse takes as much memory
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

        Minus infinity where a matrix is singular, to rounding error of either sign.
        """
        return factors.logdet(self.dense())

    def frobenius_norm(self) -> Tensor:
        """Compute the Frobenius norm of each group, ``[G]``."""
        return self.dense().square().sum((1, 2)).sqrt()

    def eigh(self, complete: bool = True) -> tuple[Tensor, Tensor]:
        """Compute eigenvalues ``[G, D]`` and eigenvectors ``[G, D, D]``.

        Args:
            complete: For low-rank matrices; these have all.
        """
        return factors.eigenbasis(self.dense())


@dataclass(frozen=True)
class DenseMatrix(SymmetricMatrix):
    """Symmetric matrices that are positive semi-definite.

    Args:
        entries: ``[G, D, D]``.
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
