"""Blocks of a layer's (E)KFAC, one of each group: products and matrix functions."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from tn_extensions.kronecker.factors import compact, is_low_rank, logdet, trace
from tn_extensions.kronecker.span import Span
from tn_extensions.layers.host import holds, is_finite


@dataclass(frozen=True)
class LowRank:
    """``shift I + sign R^T core^-1 R`` of each group.

    Args:
        factor: The low-rank factor ``R``, ``[G, r, D]``.
        sign: One or minus one.
        shift: ``[G, 1, 1]``, or zero.
        cholesky: Lower triangle ``[G, r, r]`` of the core's Cholesky decomposition: an
            explicit inverse would lose digits. ``None``: the core is the identity.
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
        """``matrices @ self``; torch takes long to hand that operator over."""
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
        """Whether all entries are finite."""
        parts = [part for part in (self.factor, self.cholesky) if part is not None]
        return is_finite(*parts)

    def _add(self, matrices: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Add a product to the shifted matrices."""
        if self.sign == 1 and isinstance(self.shift, float) and not self.shift:
            return left @ right
        shifted = self.shift * matrices
        add = shifted.addmm_ if shifted.dim() == 2 else shifted.baddbmm_
        return add(left, right, alpha=self.sign)


@dataclass(frozen=True)
class Cholesky:
    """``(L diag(pivots) L^T)^-1`` of each group.

    Args:
        square: ``L`` below the diagonals of ``[G, D, D]``, where it has ones; the rest
            is not read. See :mod:`tn_extensions.kronecker.square`.
        pivots: ``[G, D]``.
        span: How rows of low rank are found, of which a basis is solved for.
    """

    square: Tensor
    pivots: Tensor
    span: Span = field(default_factory=Span, repr=False, compare=False)

    def __matmul__(self, matrices: Tensor) -> Tensor:
        return self.times(matrices.mT).mT

    def times(self, matrices: Tensor, left: Matrix | None = None) -> Tensor:
        """``left @ matrices @ self``; without ``left``, ``matrices @ self``."""
        split = self.span.split(matrices)
        if split is not None:
            basis, inner = split
            return (basis if left is None else left @ basis) @ self._solved(inner)
        if left is None:
            return self._solved(matrices.clone(memory_format=torch.contiguous_format))
        return self._solved((left @ matrices).contiguous())

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

    def __getitem__(self, group: int) -> Cholesky:
        return Cholesky(self.square[group], self.pivots[group], self.span)

    @property
    def is_finite(self) -> bool:
        """Whether all entries are: what overflows below makes a later pivot do so."""
        return is_finite(self.pivots)


Matrix = Tensor | LowRank | Cholesky
Eigenbasis = tuple[Tensor, Tensor]
"""Eigenvalues ``[G, r]`` and eigenvectors ``[G, D, r]``."""


def matrix(factor: Tensor) -> Matrix:
    """What multiplies by a factor."""
    return LowRank(factor) if is_low_rank(factor) else factor


@dataclass(frozen=True)
class Product:
    """``left (x) right``, that only multiplies.

    Args:
        left: ``[G, CO, CO]``.
        right: ``[G, D, D]``. ``None``: one by one (a bias).
    """

    left: Matrix
    right: Matrix | None

    def __matmul__(self, matrices: Tensor) -> Tensor:
        """Multiply onto vectors of a kernel, ``[G, CO, D, V]``."""
        return _both(self.left, matrices, self.right)

    @property
    def is_finite(self) -> bool:
        """Whether all entries are finite."""
        return all(
            is_finite(part) if isinstance(part, Tensor) else part.is_finite
            for part in self._parts
        )

    @property
    def is_in_place(self) -> bool:
        """Whether a part of it lies in a square that another matrix is in, too."""
        return any(isinstance(part, Cholesky) for part in self._parts)

    @property
    def _parts(self) -> list[Matrix]:
        return [part for part in (self.left, self.right) if part is not None]


@dataclass(frozen=True)
class Kronecker:
    """``B (x) A``.

    Args:
        left: Factor ``B`` of ``CO`` columns.
        right: Factor ``A`` of ``D`` columns. ``None``: one by one (a bias).
    """

    left: Tensor
    right: Tensor | None

    def __matmul__(self, matrices: Tensor) -> Tensor:
        """Multiply onto vectors of a kernel, ``[G, CO, D, V]``."""
        right = None if self.right is None else matrix(self.right)
        return Product(matrix(self.left), right) @ matrices

    @property
    def _factors(self) -> tuple[Tensor, Tensor]:
        """``A`` and ``B``."""
        one = self.left.new_ones(len(self.left), 1, 1)
        return one if self.right is None else self.right, self.left

    def trace(self) -> Tensor:
        """``tr(A) tr(B)``."""
        a, b = map(trace, self._factors)
        return (a * b).sum()

    def det(self) -> Tensor:
        """``|A|^CO |B|^D``."""
        a, b = self._factors
        return (_det(a).pow(b.shape[-1]) * _det(b).pow(a.shape[-1])).prod()

    def logdet(self) -> Tensor:
        """``CO log|A| + D log|B|``."""
        a, b = self._factors
        return (_logdet(a) * b.shape[-1] + _logdet(b) * a.shape[-1]).sum()

    def squared_norm(self) -> Tensor:
        """``||A||^2 ||B||^2``."""
        a, b = (compact(factor).square().sum((1, 2)) for factor in self._factors)
        return (a * b).sum()


def _det(factor: Tensor) -> Tensor:
    zeros = factor.new_zeros(len(factor))
    return zeros if is_low_rank(factor) else torch.linalg.det(factor)


def _logdet(factor: Tensor) -> Tensor:
    return _det(factor).log() if is_low_rank(factor) else logdet(factor)


@dataclass(frozen=True)
class Rotated:
    """``(Q_B (x) Q_A) diag(values) (Q_B (x) Q_A)^T + rest`` outside of the bases' span.

    Args:
        left: Basis ``Q_B``, ``[G, CO, s]``.
        right: Basis ``Q_A``, ``[G, D, r]``. ``None``: one by one (a bias).
        values: Eigenvalues, ``[G, s, r]``.
        rest: Eigenvalue of what is orthogonal to the bases.
    """

    left: Tensor
    right: Tensor | None
    values: Tensor
    rest: float = 0.0

    @classmethod
    def of_eigenbases(cls, left: Eigenbasis, right: Eigenbasis | None) -> Rotated:
        """``B (x) A`` of the eigenvalues and eigenvectors of its factors."""
        values, basis = left
        if right is None:
            return cls(basis, None, values.unsqueeze(2))
        return cls(basis, right[1], values.unsqueeze(2) * right[0].unsqueeze(1))

    @property
    def is_thin(self) -> bool:
        """Whether the bases leave a rest."""
        bases = [self.left] if self.right is None else [self.left, self.right]
        return any(basis.shape[1] > basis.shape[2] for basis in bases)

    def __matmul__(self, matrices: Tensor) -> Tensor:
        """Multiply onto vectors of a kernel, ``[G, CO, D, V]``."""
        has_rest = self.rest != 0 and self.is_thin
        values = (self.values - self.rest if has_rest else self.values).unsqueeze(3)
        rotated = _both(self.left.mT, matrices, self.right).mul_(values)
        back = None if self.right is None else self.right.mT
        result = _both(self.left, rotated, back)
        return result.add_(matrices, alpha=self.rest) if has_rest else result

    def inverse(self, damping: float) -> Rotated:
        """The inverse of this plus ``damping`` times the identity."""
        values = (self.values + damping).reciprocal()
        rest = self.rest + damping
        return Rotated(self.left, self.right, values, 1 / rest if rest else inf)

    @property
    def is_finite(self) -> bool:
        """Whether all eigenvalues are finite."""
        return is_finite(self.values) and (not self.is_thin or isfinite(self.rest))

    @property
    def is_definite(self) -> bool:
        """True if all eigenvalues are finite and positive."""
        rest = not self.is_thin or self.rest > 0
        return rest and self.is_finite and holds((self.values > 0).all())

    def trace(self) -> Tensor:
        """Sum of the eigenvalues."""
        return self.values.sum()

    def det(self) -> Tensor:
        """Product of the eigenvalues."""
        return self.values.new_zeros(()) if self.is_thin else self.values.prod()

    def logdet(self) -> Tensor:
        """Sum of the eigenvalues' logarithms."""
        rest = self.values.new_full((), -torch.inf)
        return rest if self.is_thin else self.values.log().sum()

    def squared_norm(self) -> Tensor:
        """Sum of the squared eigenvalues."""
        return self.values.square().sum()


def _both(left: Matrix, matrices: Tensor, right: Matrix | None) -> Tensor:
    groups, _, columns, vectors = matrices.shape
    if groups == vectors == 1:
        # without the batch axis: of one matrix, a batched product takes longer
        one = matrices[0, :, :, 0]
        if isinstance(right, Cholesky):
            one = right[0].times(one, left[0])
        else:
            one = left[0] @ one
            if right is not None:
                one = _times(one, right[0])
        return one[None, :, :, None]
    product = (left @ matrices.flatten(2)).unflatten(2, (columns, vectors))
    if right is None:
        return product
    product = product.movedim(3, 1)
    rows = _times(product.reshape(groups, -1, columns), right)
    return rows.unflatten(1, product.shape[1:3]).movedim(1, 3)


def _times(matrices: Tensor, right: Matrix) -> Tensor:
    return matrices @ right if isinstance(right, Tensor) else right.times(matrices)


Block = Kronecker | Rotated
