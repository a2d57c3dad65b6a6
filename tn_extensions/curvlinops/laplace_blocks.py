"""Blocks of laplace-torch's Kronecker matrices, with groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tn_extensions.kronecker.factors import logdet


@dataclass(frozen=True)
class KronBlock:
    """The block ``L (x) R`` of one parameter, for each group.

    Args:
        left: ``L``, ``[G, CO, CO]``.
        right: ``R``, ``[G, D, D]``; ones ``[G, 1, 1]`` for a bias.
        split: ``CI`` and ``K`` for a transposed convolution, whose ``D = CI * K``.
    """

    left: Tensor
    right: Tensor
    split: tuple[int, int] | None

    @classmethod
    def of(cls, matrices: Sequence[Tensor]) -> KronBlock:
        """Create a block from one or two factors, or from their eigenvectors."""
        left = square(matrices[0])
        if len(matrices) == 1:
            return cls(left, left.new_ones(len(left), 1, 1), None)
        right = rows(matrices[1])
        split = (right.shape[1], right.shape[2]) if right.ndim == 4 else None
        return cls(left, square(right), split)

    @property
    def size(self) -> int:
        """Number of entries of the parameter."""
        return self.left.shape[0] * self.left.shape[1] * self.right.shape[1]

    def matrices(self, vectors: Tensor) -> Tensor:
        """View flat vectors ``[..., P]`` as matrices ``[..., G, CO, D]``."""
        groups, rows, columns = *self.left.shape[:2], self.right.shape[1]
        if self.split is None:
            return vectors.unflatten(-1, (groups, rows, columns))
        inputs, positions = self.split
        vectors = vectors.unflatten(-1, (groups, inputs, rows, positions))
        return vectors.transpose(-3, -2).flatten(-2)

    def flat(self, matrices: Tensor) -> Tensor:
        """Undo :meth:`matrices`."""
        if self.split is None:
            return matrices.flatten(-3)
        return matrices.unflatten(-1, self.split).transpose(-3, -2).flatten(-4)

    def forward(self, matrices: Tensor) -> Tensor:
        """Compute ``L X R^T``."""
        return _product(self.left, matrices, self.right.mT)

    def adjoint(self, matrices: Tensor) -> Tensor:
        """Compute ``L^T X R``."""
        return _product(self.left.mT, matrices, self.right)

    def diagonal(self) -> Tensor:
        """Compute the diagonal, ``[G, CO, D]``."""
        left, right = (own.diagonal(dim1=1, dim2=2) for own in (self.left, self.right))
        return left.unsqueeze(2) * right.unsqueeze(1)

    def logdet(self) -> Tensor:
        """Compute the logarithm of the determinant."""
        rows, columns = self.left.shape[1], self.right.shape[1]
        return (columns * logdet(self.left) + rows * logdet(self.right)).sum()

    def squared(self) -> KronBlock:
        """Square all entries of both matrices."""
        return KronBlock(self.left.square(), self.right.square(), self.split)


def rows(factor: Tensor) -> Tensor:
    """View a factor like its eigenvectors: ``[(G,) D, D]`` or ``[G, CI, K, D]``."""
    return factor.transpose(2, 3).flatten(3) if factor.ndim == 5 else factor


def square(rows: Tensor) -> Tensor:
    """View rows, or the diagonal ``[D]`` of a diagonal matrix, as ``[G, D, D]``."""
    rows = rows.diag() if rows.ndim == 1 else rows
    return rows.flatten(1, 2) if rows.ndim == 4 else rows.reshape(-1, *rows.shape[-2:])


def _product(left: Tensor, matrices: Tensor, right: Tensor) -> Tensor:
    """Compute ``L X R`` for matrices ``[..., G, CO, D]``."""
    if len(left) == 1:
        return left[0] @ matrices @ right[0]
    # a batched matrix product would copy the groups' matrices for each vector
    product = torch.einsum("gab,...gbi->...gai", left, matrices)
    return torch.einsum("...gai,gij->...gaj", product, right)


def identity(blocks: Sequence[KronBlock]) -> Tensor:
    """Create the identity on all parameters, ``[1, P, P]``."""
    like = blocks[0].left
    size = sum(block.size for block in blocks)
    return torch.eye(size, dtype=like.dtype, device=like.device).unsqueeze(0)
