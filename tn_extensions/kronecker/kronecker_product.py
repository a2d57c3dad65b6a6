"""Kronecker products, one of each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from tn_extensions.errors import describe
from tn_extensions.kronecker.cholesky_inverse import CholeskyInverse
from tn_extensions.kronecker.dense import DenseMatrix
from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix
from tn_extensions.kronecker.inverse import split_by_means
from tn_extensions.kronecker.low_rank import LowRank
from tn_extensions.kronecker.matrices import Matrix, both_sides, matrix, structured
from tn_extensions.layers.host import is_finite

Method = Literal["fixed", "pi", "exact"]


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
        left, right = (
            matrix(part) if isinstance(part, Tensor) else part
            for part in (self.left, self.right)
        )
        assert left is not None
        return both_sides(left, matrices, right)

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
        self, damping: float, method: Method = "fixed", minimum: float = 1e-8
    ) -> KroneckerProduct | EigendecomposedMatrix:
        """Compute the inverse, damped.

        Args:
            damping: The damping.
            method: ``"fixed"``: it is added to both factors. ``"pi"``: it is split
                between them (Martens & Grosse, 2015, section 6.3). ``"exact"``: it is
                added to the product, in its eigenbasis.
            minimum: The least damping of a factor, of method ``"pi"``.

        Returns:
            The inverse; eigendecomposed, if exact.

        Raises:
            ValueError: If there is no such method.
            torch.linalg.LinAlgError: If a damped factor is not positive definite.
        """
        if method not in get_args(Method):
            choices = " or ".join(map(repr, get_args(Method)))
            owner = "KroneckerProduct.inverse"
            raise ValueError(describe(owner, "method", f"be {choices}", repr(method)))
        if method == "exact":
            return self.eigh().inverse(damping)
        left = structured(self.left)
        if self.right is None:
            return KroneckerProduct(left.inverse(damping), None)
        right = structured(self.right)
        of_right: float | Tensor
        of_left: float | Tensor
        of_right = of_left = damping
        if method == "pi":
            rows, columns = self._shape
            means = right.trace() / columns, left.trace() / rows
            of_right, of_left = split_by_means(*means, damping, minimum)
        return KroneckerProduct(left.inverse(of_left), right.inverse(of_right))

    def eigh(self) -> EigendecomposedMatrix:
        """Compute the eigendecomposition, that of the factors."""
        left = structured(self.left).eigh()
        right = None if self.right is None else structured(self.right).eigh()
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
    def _factors(self) -> tuple[_Structured, _Structured]:
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


_Structured = DenseMatrix | LowRank | CholeskyInverse


def _tensor(part: Matrix) -> Tensor:
    """Return a tensor ``[G, ., D]`` of a matrix of ``D`` columns."""
    if isinstance(part, Tensor):
        return part
    return part.factor if isinstance(part, LowRank) else part.square
