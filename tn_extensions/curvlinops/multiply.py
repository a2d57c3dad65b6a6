"""Products with Kronecker factors of a layer's groups."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


def stacked(factor: Tensor) -> Tensor:
    """A factor with an axis of groups; layers without groups keep none."""
    return factor if factor.dim() == 3 else factor.unsqueeze(0)


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
