"""Kronecker products, one of each group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from tn_extensions.errors import check_choice, describe
from tn_extensions.kronecker.cholesky_inverse import CholeskyInverse
from tn_extensions.kronecker.dense import DenseMatrix
from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix
from tn_extensions.kronecker.low_rank import LowRank
from tn_extensions.kronecker.matrices import Matrix, Structured, both_sides, structured
from tn_extensions.layers.host import is_finite

Method = Literal["fixed", "pi", "exact"]
Damping = float | Tensor
"""Of all groups, or of each one, ``[G]``."""


def _inverted(factor: Structured, damping: Damping) -> Matrix:
    return factor.inverse(damping)


@dataclass(frozen=True)
class KroneckerProduct:
    """``left (x) right`` of each group: ``B (x) A`` of KFAC, or its inverse.

    The matrix of a layer is block diagonal, a block for each group. Its functions are
    of all groups together.

    Args:
        left: Factor ``B``, ``[G, CO, CO]``, or a low-rank factor of ``CO`` columns.
        right: Factor ``A``, ``[G, D, D]``, or a low-rank factor of ``D`` columns.
            ``None``: one by one (a bias).
    """

    left: Matrix
    right: Matrix | None

    def __matmul__(self, matrices: Tensor) -> Tensor:
        """Multiply onto vectors of a kernel, ``[G, CO, D, V]``."""
        right = None if self.right is None else structured(self.right)
        return both_sides(structured(self.left), matrices, right)

    @property
    def is_finite(self) -> bool:
        """Tell whether all entries are finite."""
        return all(
            is_finite(part) if isinstance(part, Tensor) else part.is_finite
            for part in (self.left, self.right)
            if part is not None
        )

    @property
    def is_in_place(self) -> bool:
        """Tell whether a part of it lies in a square that another matrix is in, too."""
        parts = self.left, self.right
        return any(isinstance(part, CholeskyInverse) for part in parts)

    def inverse(
        self,
        damping: Damping | tuple[Damping, Damping],
        method: Method = "fixed",
        minimum: float = 1e-8,
        invert: Callable[[Structured, Damping], Matrix] = _inverted,
    ) -> KroneckerProduct | EigendecomposedMatrix:
        """Compute the inverse, damped.

        Args:
            damping: The damping, of all groups or of each one, ``[G]``. It may be a
                pair, for ``A`` and ``B``, if fixed; it is one number, if exact.
            method: ``"fixed"``: it is added to both factors. ``"pi"``: it is split
                between them (Martens & Grosse, 2015, section 6.3). ``"exact"``: it is
                added to the product, in its eigenbasis.
            minimum: The least damping of a factor, of method ``"pi"``.
            invert: Inverts a factor plus its damping, ``A`` before ``B``; not if exact.

        Returns:
            The inverse; eigendecomposed, if exact.

        Raises:
            ValueError: If there is no such method, or no such damping of it.
            torch.linalg.LinAlgError: If what is damped is not positive definite.
        """
        owner = "KroneckerProduct.inverse"
        check_choice(owner, "method", method, Method)
        of_right, of_left = damping if isinstance(damping, tuple) else (damping,) * 2
        is_exact = method == "exact"
        is_many = is_exact and torch.as_tensor(of_left).numel() > 1
        if is_many or method != "fixed" and isinstance(damping, tuple):
            rule = (
                f"be {'one number' if is_exact else 'no pair'} with method {method!r}"
            )
            raise ValueError(describe(owner, "damping", rule, damping))
        if is_exact:
            exact = self.eigh().inverse(cast(float, of_left))
            if not exact.is_definite:
                raise LinAlgError("the damped product is not positive definite")
            return exact
        if self.right is None:
            return KroneckerProduct(invert(structured(self.left), of_left), None)
        if method == "pi":
            of_right, of_left = self._split(of_left, minimum)
        right = invert(structured(self.right), of_right)
        return KroneckerProduct(invert(structured(self.left), of_left), right)

    def _split(self, damping: Damping, minimum: float) -> tuple[Tensor, Tensor]:
        """Split damping between ``A`` and ``B`` of each group, ``[G]``.

        ``pi sqrt(damping)`` and ``sqrt(damping) / pi``, ``pi^2`` being the ratio of the
        factors' mean eigenvalues. Undivided where a mean is not positive.
        """
        sizes = reversed(self._shape)
        a, b = (own.trace() / n for own, n in zip(self._factors, sizes, strict=True))
        pi, root = (a / b).sqrt(), damping**0.5
        is_defined = (a >= 0) & (b > 0)
        of_right, of_left = (
            torch.where(is_defined, own.clamp(minimum), damping)
            for own in (root * pi, root / pi)
        )
        return of_right, of_left

    def eigh(self, complete: bool = False) -> EigendecomposedMatrix:
        """Compute the eigendecomposition, that of the factors.

        Args:
            complete: Whether to find all eigenvectors of low-rank factors.
        """
        left = structured(self.left).eigh(complete)
        right = None if self.right is None else structured(self.right).eigh(complete)
        return EigendecomposedMatrix.of_eigenbases(left, right)

    def trace(self) -> Tensor:
        """Compute the sum of ``tr(A) tr(B)``."""
        a, b = (factor.trace() for factor in self._factors)
        return (a * b).sum()

    def det(self) -> Tensor:
        """Compute the product of ``|A|^CO |B|^D``."""
        a, b = (factor.det() for factor in self._factors)
        rows, columns = self._shape
        return (b.pow(columns) * a.pow(rows)).prod()

    def logdet(self) -> Tensor:
        """Compute the sum of ``CO log|A| + D log|B|``."""
        a, b = (factor.logdet() for factor in self._factors)
        rows, columns = self._shape
        return (a * rows + b * columns).sum()

    def squared_norm(self) -> Tensor:
        """Compute the sum of ``||A||^2 ||B||^2``."""
        a, b = (factor.frobenius_norm().square() for factor in self._factors)
        return (a * b).sum()

    def frobenius_norm(self) -> Tensor:
        """Compute the Frobenius norm."""
        return self.squared_norm().sqrt()

    @property
    def _factors(self) -> tuple[Structured, Structured]:
        """``A`` and ``B``."""
        left = structured(self.left)
        if self.right is not None:
            return structured(self.right), left
        like = _tensor(self.left)
        return DenseMatrix(like.new_ones(len(like), 1, 1)), left

    @property
    def _shape(self) -> tuple[int, int]:
        """``CO`` and ``D``."""
        columns = 1 if self.right is None else _tensor(self.right).shape[-1]
        return _tensor(self.left).shape[-1], columns


def _tensor(part: Matrix) -> Tensor:
    """Return a tensor ``[G, ., D]`` of a matrix of ``D`` columns."""
    if isinstance(part, Tensor):
        return part
    return part.factor if isinstance(part, LowRank) else part.square
