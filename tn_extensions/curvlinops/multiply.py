"""Products with Kronecker factors of a layer's groups, and functions of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


def stacked(factor: Tensor) -> Tensor:
    """A factor with an axis of groups; layers without groups keep none."""
    return factor if factor.dim() == 3 else factor.unsqueeze(0)


def unstacked(factor: Tensor) -> Tensor:
    """The inverse of :func:`stacked`: as curvlinops has it without groups."""
    return factor[0] if len(factor) == 1 else factor


@dataclass(frozen=True)
class Kronecker:
    """``B (x) A``, or ``(Q_B (x) Q_A) diag(eigenvalues) (Q_B (x) Q_A)^T``.

    Args:
        left: ``B`` or ``Q_B``, ``[(G,) CO, CO]``.
        right: ``A`` or ``Q_A``, ``[(G,) D, D]``. ``None``: one by one (a bias).
        eigenvalues: ``[(G,) CO, D]`` (``[(G,) CO]`` of a bias). ``None``: factors.
    """

    left: Tensor
    right: Tensor | None
    eigenvalues: Tensor | None = None

    def __matmul__(self, matrices: Tensor) -> Tensor:
        """Multiply onto matrices ``[G, CO, D, V]``."""
        left = stacked(self.left)
        right = None if self.right is None else stacked(self.right)
        if self.eigenvalues is None:
            return _both(left, matrices, right)
        transposed = None if right is None else right.mT
        values = self.eigenvalues.reshape(*matrices.shape[:3], 1)
        rotated = _both(left.mT, matrices, right).mul_(values)
        return _both(left, rotated, transposed)


def _both(left: Tensor, matrices: Tensor, right: Tensor | None) -> Tensor:
    groups, rows, columns, vectors = matrices.shape
    product = left @ matrices.flatten(2)
    product = product.reshape(groups, rows, columns, vectors)
    if right is None:
        return product
    product = product.movedim(3, 1)
    shape = product.shape
    product = product.reshape(groups, vectors * rows, columns) @ right
    return product.reshape(shape).movedim(1, 3)


def trace(a: Tensor, b: Tensor) -> Tensor:
    """Trace of ``B (x) A`` of each group."""
    return diagonal(a).sum(-1) * diagonal(b).sum(-1)


def diagonal(factors: Tensor) -> Tensor:
    """Diagonals of matrices."""
    return factors.diagonal(dim1=-2, dim2=-1)


def logdet(a: Tensor, b: Tensor) -> Tensor:
    """Logarithm of the determinant of ``B (x) A`` of each group."""
    return b.shape[-1] * a.logdet() + a.shape[-1] * b.logdet()


def det(a: Tensor, b: Tensor) -> Tensor:
    """Product of the groups' determinants of ``B (x) A``."""
    return (a.det().pow(b.shape[-1]) * b.det().pow(a.shape[-1])).prod()


def squared_norm(a: Tensor, b: Tensor) -> Tensor:
    """Squared Frobenius norm of ``B (x) A`` of each group."""
    return a.square().sum((1, 2)) * b.square().sum((1, 2))
