"""Kronecker products, one for each group."""

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
"""One damping for all groups, or one for each, ``[G]``."""


def _inverted(factor: Structured, damping: Damping) -> Matrix:
    return factor.inverse(damping)


@dataclass(frozen=True)
class KroneckerProduct:
    """The Kronecker product ``left (x) right``: ``B (x) A`` of KFAC, or its inverse.

    The matrix of a layer is block-diagonal with a block for each group. Trace,
    determinant and norms are those of the whole matrix.

    Args:
        left: Factor ``B``, ``[G, CO, CO]``, or a low-rank factor with ``CO`` columns.
        right: Factor ``A``, ``[G, D, D]``, or a low-rank factor with ``D`` columns.
            ``None``: the number one (for a bias).
    """

    left: Matrix
    right: Matrix | None

    def __matmul__(self, matrices: Tensor) -> Tensor:
        """Multiply with vectors in the space of a kernel, ``[G, CO, D, V]``."""
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
        """Tell whether a factor is stored below the diagonal of another matrix."""
        parts = self.left, self.right
        return any(isinstance(part, CholeskyInverse) for part in parts)

    def inverse(
        self,
        damping: Damping | tuple[Damping, Damping],
        method: Method = "fixed",
        minimum: float = 1e-8,
        invert: Callable[[Structured, Damping], Matrix] = _inverted,
    ) -> KroneckerProduct | EigendecomposedMatrix:
        """Compute the damped inverse.

        Args:
            damping: The damping: one number, or one for each group, ``[G]``. With
                ``"fixed"``, it may be a pair for ``A`` and ``B``. With ``"exact"``, it
                must be one number.
            method: ``"fixed"``: add the damping to both factors. ``"pi"``: split it
                between them (Martens & Grosse, 2015, section 6.3). ``"exact"``: add it
                to the product, in its eigenbasis.
            minimum: Smallest damping of a factor with ``"pi"``.
            invert: Function that inverts a factor plus its damping. It is called for
                ``A``, then for ``B``; not with ``"exact"``.

        Returns:
            The inverse; eigendecomposed with ``"exact"``.

        Raises:
            ValueError: If the method is unknown, or does not support the damping.
            torch.linalg.LinAlgError: If a damped matrix is not positive definite.
        """
        owner = "KroneckerProduct.inverse"
        check_choice(owner, "method", method, Method)
        of_right, of_left = damping if isinstance(damping, tuple) else (damping,) * 2
        is_exact = method == "exact"
        is_many = is_exact and torch.as_tensor(of_left).numel() > 1
        if is_many or method != "fixed" and isinstance(damping, tuple):
            kind = "one number" if is_exact else "one number, or one for each group,"
            rule = f"be {kind} with method {method!r}"
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

        The parts are ``pi sqrt(damping)`` and ``sqrt(damping) / pi``, where ``pi^2`` is
        the ratio of the factors' mean eigenvalues. If a mean is not positive, both
        parts are the whole damping.
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
        """Compute the eigendecomposition from those of the factors.

        Args:
            complete: Whether to compute all eigenvectors of low-rank factors.

        Returns:
            The eigendecomposition.
        """
        left = structured(self.left).eigh(complete)
        right = None if self.right is None else structured(self.right).eigh(complete)
        return EigendecomposedMatrix.of_eigenbases(left, right)

    def trace(self) -> Tensor:
        """Compute the sum of ``tr(A) tr(B)`` over groups."""
        a, b = (factor.trace() for factor in self._factors)
        return (a * b).sum()

    def det(self) -> Tensor:
        """Compute the product of ``|A|^CO |B|^D`` over groups."""
        a, b = (factor.det() for factor in self._factors)
        rows, columns = self._shape
        return (b.pow(columns) * a.pow(rows)).prod()

    def logdet(self) -> Tensor:
        """Compute the sum of ``CO log|A| + D log|B|`` over groups."""
        a, b = (factor.logdet() for factor in self._factors)
        rows, columns = self._shape
        return (a * rows + b * columns).sum()

    def squared_norm(self) -> Tensor:
        """Compute the sum of ``||A||^2 ||B||^2`` over groups."""
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
    """Return a tensor ``[G, ., D]`` of a matrix with ``D`` columns."""
    if isinstance(part, Tensor):
        return part
    return part.factor if isinstance(part, LowRank) else part.square
