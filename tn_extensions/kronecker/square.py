"""Two symmetric matrices in a square: an average above, a decomposition below.

A symmetric matrix needs one triangle. Where the other one holds the decomposition by
which it is inverted, an inverse takes no memory but for a diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_LEAST_STRIP = 128


def above(matrices: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Parts that make up upper triangles, to be changed in place.

    What is below the diagonal is put back after each.

    Args:
        matrices: ``[G, D, D]``.

    Yields:
        Rows, columns (from the first row's on), and the part ``[G, rows, columns]``.
    """
    for start, end in strips(matrices.shape[2]):
        rows, columns = slice(start, end), slice(start, None)
        part = matrices[:, rows, columns]
        block = part[:, :, : end - start]
        below = block.tril(-1)
        yield rows, columns, part
        block.triu_().add_(below)


def symmetrize(matrices: Tensor) -> Tensor:
    """Make lower triangles mirror images of the upper ones, in place."""
    for start, end in strips(matrices.shape[2]):
        matrices[:, end:, start:end] = matrices[:, start:end, end:].mT
        block = matrices[:, start:end, start:end]
        block.copy_(mirrored(block))
    return matrices


def mirrored(matrices: Tensor) -> Tensor:
    """Matrices with the upper triangles of the given ones, and their mirror images."""
    return matrices.triu() + matrices.triu(1).mT


def put_below(matrices: Tensor, others: Tensor) -> Tensor:
    """Take over what others have below their diagonals, in place."""
    for start, end in strips(matrices.shape[2]):
        matrices[:, end:, start:end] = others[:, end:, start:end]
        block = matrices[:, start:end, start:end]
        block.triu_().add_(others[:, start:end, start:end].tril(-1))
    return matrices


def decompose(matrices: Tensor, damping: float | Tensor) -> Tensor:
    """``L diag(pivots) L^T = upper triangles, mirrored, + damping I``, in place.

    A left-looking Cholesky decomposition by blocks. ``L``, which has ones on its
    diagonal, replaces what is below that of the matrices.

    Args:
        matrices: ``[G, D, D]``.
        damping: Of all groups, or of each one, ``[G]``.

    Returns:
        Pivots, ``[G, D]``.

    Raises:
        torch.linalg.LinAlgError: If a damped matrix is not positive definite. What was
            below the diagonals is lost then, too.
    """
    pivots = matrices.new_empty(matrices.shape[:2])
    shifts = torch.as_tensor(damping, dtype=pivots.dtype, device=pivots.device)
    shifts = shifts.expand(len(matrices))
    for matrix, shift, found in zip(matrices, shifts, pivots, strict=True):
        for start, end in strips(len(matrix)):
            # transposed: the lower triangle, which is the one that is read
            block = matrix[start:end, start:end].T.clone()
            block.diagonal().add_(shift)
            left = matrix[start:end, :start]
            scaled = (left * found[:start]).T
            root = torch.linalg.cholesky(block.addmm_(left, scaled, alpha=-1))
            diagonal = root.diagonal()
            found[start:end] = diagonal.square()
            matrix[start:end, start:end].triu_().add_((root / diagonal).tril_(-1))
            panel = matrix[end:, start:end]
            panel.copy_(matrix[start:end, end:].T)
            panel.addmm_(matrix[end:, :start], scaled, alpha=-1)
            solved = torch.linalg.solve_triangular(
                root.T, panel, upper=True, left=False
            )
            torch.div(solved, diagonal, out=panel)
    return pivots


def strips(size: int) -> list[tuple[int, int]]:
    """Rows of a matrix in up to eight strips; small matrices are not worth more."""
    step = max(_LEAST_STRIP, -(-size // 8))
    return [(start, min(start + step, size)) for start in range(0, size, step)]
