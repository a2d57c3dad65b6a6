"""Matrices of a layer, given by eigenvalues in a Kronecker product of bases."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

from torch import Tensor

from tn_extensions.kronecker.matrices import both_sides
from tn_extensions.layers.host import holds, is_finite

Eigenbasis = tuple[Tensor, Tensor]
"""Eigenvalues ``[G, r]`` and eigenvectors ``[G, D, r]``."""


@dataclass(frozen=True)
class EigendecomposedMatrix:
    """The matrix ``(Q_B (x) Q_A) diag(values) (Q_B (x) Q_A)^T``, for each group.

    If bases are not full, vectors that are orthogonal to them have the eigenvalue
    ``rest``.

    Args:
        left: Basis ``Q_B``, ``[G, CO, s]``.
        right: Basis ``Q_A``, ``[G, D, r]``. ``None``: the number one (for a bias).
        values: Eigenvalues, ``[G, s, r]``.
        rest: Eigenvalue of vectors that are orthogonal to the bases.
    """

    left: Tensor
    right: Tensor | None
    values: Tensor
    rest: float = 0.0

    @classmethod
    def of_eigenbases(
        cls, left: Eigenbasis, right: Eigenbasis | None
    ) -> EigendecomposedMatrix:
        """Create ``B (x) A`` from the eigenvalues and eigenvectors of its factors."""
        values, basis = left
        if right is None:
            return cls(basis, None, values.unsqueeze(2))
        return cls(basis, right[1], values.unsqueeze(2) * right[0].unsqueeze(1))

    @property
    def is_thin(self) -> bool:
        """Tell whether a basis is not full."""
        bases = [self.left] if self.right is None else [self.left, self.right]
        return any(basis.shape[1] > basis.shape[2] for basis in bases)

    def __matmul__(self, matrices: Tensor) -> Tensor:
        """Multiply with vectors in the space of a kernel, ``[G, CO, D, V]``."""
        has_rest = self.rest != 0 and self.is_thin
        values = (self.values - self.rest if has_rest else self.values).unsqueeze(3)
        rotated = both_sides(self.left.mT, matrices, self.right).mul_(values)
        back = None if self.right is None else self.right.mT
        result = both_sides(self.left, rotated, back)
        return result.add_(matrices, alpha=self.rest) if has_rest else result

    def inverse(self, damping: float) -> EigendecomposedMatrix:
        """Compute the inverse of this plus ``damping`` times the identity."""
        values = (self.values + damping).reciprocal()
        rest = self.rest + damping
        return EigendecomposedMatrix(
            self.left, self.right, values, 1 / rest if rest else inf
        )

    @property
    def is_finite(self) -> bool:
        """Tell whether all eigenvalues are finite."""
        return is_finite(self.values) and (not self.is_thin or isfinite(self.rest))

    @property
    def is_definite(self) -> bool:
        """Tell whether all eigenvalues are finite and positive."""
        rest = not self.is_thin or self.rest > 0
        return rest and self.is_finite and holds((self.values > 0).all())

    def eigh(self) -> EigendecomposedMatrix:
        """Return itself."""
        return self

    @property
    def _num_missing(self) -> int:
        """Number of eigenvalues that equal ``rest``, in all groups."""
        columns = 1 if self.right is None else self.right.shape[1]
        return len(self.left) * self.left.shape[1] * columns - self.values.numel()

    @property
    def _rest(self) -> Tensor:
        return self.values.new_tensor(self.rest)

    def trace(self) -> Tensor:
        """Compute the sum of the eigenvalues of all groups."""
        return self.values.sum() + self._num_missing * self.rest

    def det(self) -> Tensor:
        """Compute the product of the eigenvalues of all groups."""
        return self.values.prod() * self._rest.pow(self._num_missing)

    def logdet(self) -> Tensor:
        """Compute the sum of the logarithms of the eigenvalues of all groups."""
        found = self.values.log().sum()
        number = self._num_missing
        return found + number * self._rest.log() if number else found

    def squared_norm(self) -> Tensor:
        """Compute the sum of the squared eigenvalues of all groups."""
        return self.values.square().sum() + self._num_missing * self.rest**2

    def frobenius_norm(self) -> Tensor:
        """Compute the Frobenius norm of the block-diagonal matrix of all groups."""
        return self.squared_norm().sqrt()
