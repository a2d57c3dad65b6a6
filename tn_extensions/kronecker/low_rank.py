"""Matrices of low rank plus a multiple of the identity, one for each group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from tn_extensions.kronecker.factors import diagonal, eigenbasis, logdet
from tn_extensions.layers.host import holds, is_finite


@dataclass(frozen=True)
class LowRank:
    """The matrix ``shift I + sign R^T core^-1 R``, for each group.

    Args:
        factor: The low-rank factor ``R``, ``[G, r, D]``.
        sign: One or minus one.
        shift: Shift, ``[G, 1, 1]``, or zero.
        cholesky: Lower triangle ``[G, r, r]`` of the core's Cholesky decomposition,
            since an explicit inverse would lose digits. ``None``: the core is the
            identity.
    """

    factor: Tensor
    sign: int = 1
    shift: Tensor | float = 0.0
    cholesky: Tensor | None = None

    def __matmul__(self, matrices: Tensor) -> Tensor:
        inner = self.factor @ matrices
        if self.cholesky is not None:
            inner = torch.cholesky_solve(inner, self.cholesky)
        return self._add(matrices, self.factor.mT, inner)

    def times(self, matrices: Tensor) -> Tensor:
        """Compute ``matrices @ self``; torch dispatches the operator ``@`` slowly."""
        inner = matrices @ self.factor.mT
        if self.cholesky is not None:
            inner = torch.cholesky_solve(inner.mT, self.cholesky).mT
        return self._add(matrices, inner, self.factor)

    def __getitem__(self, group: int) -> LowRank:
        shift = self.shift if isinstance(self.shift, float) else self.shift[group]
        cholesky = None if self.cholesky is None else self.cholesky[group]
        return LowRank(self.factor[group], self.sign, shift, cholesky)

    @property
    def is_finite(self) -> bool:
        """Tell whether all entries are finite."""
        parts = [part for part in (self.factor, self.cholesky) if part is not None]
        return is_finite(*parts)

    def inverse(
        self,
        damping: float | Tensor,
        cholesky: Callable[[Tensor], Tensor] = torch.linalg.cholesky,
    ) -> LowRank:
        """Compute ``(self + damping I)^-1`` by a smaller matrix (Woodbury).

        With ``e = shift + damping``, and ``W^T W = R^T core^-1 R``::

            (e I + sign W^T W)^-1 = (I - sign W^T (e I + sign W W^T)^-1 W) / e

        Args:
            damping: The damping: one number, or one for each group, ``[G]``.
            cholesky: Function that computes the decomposition.

        Returns:
            The inverse.

        Raises:
            torch.linalg.LinAlgError: If a damped matrix is not positive definite.
        """
        damping = torch.as_tensor(
            damping, dtype=self.factor.dtype, device=self.factor.device
        ).reshape(-1, 1, 1)
        shift = damping + self.shift
        if not holds((shift > 0).all()):
            raise LinAlgError("a low-rank factor is singular without damping")
        root = self._root
        core = (root @ root.mT).mul_(self.sign)
        diagonal(core).add_(shift.squeeze(2))
        core = cholesky(core)
        return LowRank(root, -self.sign, 1 / shift, core.mul_(shift.sqrt()))

    def trace(self) -> Tensor:
        """Compute the trace of each group, ``[G]``."""
        squares = self._root.square().sum((1, 2))
        return self.factor.shape[2] * self._shifts + self.sign * squares

    def det(self) -> Tensor:
        """Compute the determinant of each group, ``[G]``."""
        if self._is_plain and self._missing:
            return self.factor.new_zeros(len(self.factor))
        rest = self._shifts.pow(self._missing)
        return rest * torch.linalg.det(self._compact)

    def logdet(self) -> Tensor:
        """Compute the logarithm of the determinant of each group, ``[G]``."""
        found = logdet(self._compact)
        return found + self._missing * self._shifts.log() if self._missing else found

    def frobenius_norm(self) -> Tensor:
        """Compute the Frobenius norm of each group, ``[G]``."""
        rest = self._missing * self._shifts.square()
        return (self._compact.square().sum((1, 2)) + rest).sqrt()

    def eigh(self, complete: bool = False) -> tuple[Tensor, Tensor]:
        """Compute eigenvalues and eigenvectors.

        Args:
            complete: Whether to add eigenvectors for the eigenvalue zero.

        Returns:
            Eigenvalues ``[G, r]`` and eigenvectors ``[G, D, r]``, with ``r = D`` if
            complete or if there is a shift.
        """
        squares, vectors = eigenbasis(self._root, complete or not self._is_plain)
        return self._shifts.unsqueeze(1) + self.sign * squares, vectors

    @property
    def _is_plain(self) -> bool:
        return self.sign == 1 and isinstance(self.shift, float) and not self.shift

    @property
    def _root(self) -> Tensor:
        """The matrix ``W`` with ``W^T W = R^T core^-1 R``."""
        if self.cholesky is None:
            return self.factor
        return torch.linalg.solve_triangular(self.cholesky, self.factor, upper=False)

    @property
    def _shifts(self) -> Tensor:
        """The shift of each group, ``[G]``."""
        shift = torch.as_tensor(
            self.shift, dtype=self.factor.dtype, device=self.factor.device
        )
        return shift.reshape(-1).expand(len(self.factor))

    @property
    def _missing(self) -> int:
        """Number of eigenvalues that equal the shift."""
        return self.factor.shape[2] - self.factor.shape[1]

    @property
    def _compact(self) -> Tensor:
        """Matrices ``[G, r, r]`` with all eigenvalues except the missing ones."""
        root = self._root
        found = (root @ root.mT).mul_(self.sign)
        diagonal(found).add_(self._shifts.unsqueeze(1))
        return found

    def _add(self, matrices: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Add a product to the shifted matrices."""
        if self._is_plain:
            return left @ right
        shifted = self.shift * matrices
        add = shifted.addmm_ if shifted.dim() == 2 else shifted.baddbmm_
        return add(left, right, alpha=self.sign)
