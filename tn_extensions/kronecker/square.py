"""Square matrices that hold an average above and a decomposition below the diagonal.

A symmetric matrix needs only one triangle. If the other triangle holds the
decomposition of its inverse, the inverse needs memory only for a diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_LEAST_STRIP = 128


def above(matrices: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield parts that cover upper triangles, to be changed in place.

    Entries below the diagonal are restored after each part.

    Args:
        matrices: Matrices, ``[G, D, D]``.

    Yields:
        Rows, columns (starting with that of the first row), and the part ``[G, rows,
        columns]``.
    """
    for start, end in strips(matrices.shape[2]):
        rows, columns = slice(start, end), slice(start, None)
        part = matrices[:, rows, columns]
        block = part[:, :, : end - start]
        below = block.tril(-1)
        yield rows, columns, part
        block.triu_().add_(below)


def symmetrize(matrices: Tensor) -> Tensor:
    """Copy upper triangles to the lower ones, in place."""
    for start, end in strips(matrices.shape[2]):
        matrices[:, end:, start:end] = matrices[:, start:end, end:].mT
        block = matrices[:, start:end, start:end]
        block.copy_(mirrored(block))
    return matrices


def mirrored(matrices: Tensor) -> Tensor:
    """Return symmetric matrices with the given upper triangles."""
    return matrices.triu() + matrices.triu(1).mT


def put_below(matrices: Tensor, others: Tensor) -> Tensor:
    """Copy the entries below the diagonals of other matrices, in place."""
    for start, end in strips(matrices.shape[2]):
        matrices[:, end:, start:end] = others[:, end:, start:end]
        block = matrices[:, start:end, start:end]
        block.triu_().add_(others[:, start:end, start:end].tril(-1))
    return matrices


def decompose(matrices: Tensor, damping: float | Tensor) -> Tensor:
    """Decompose damped symmetric matrices, given by their upper triangles, in place.

    Computes ``L diag(pivots) L^T = M + damping I`` by a left-looking Cholesky
    decomposition by blocks. ``L``, which has ones on its diagonal, replaces the entries
    below the diagonal of the matrices.

    Args:
        matrices: Matrices, ``[G, D, D]``, whose upper triangles are those of ``M``.
        damping: The damping: one number, or one for each group, ``[G]``.

    Returns:
        Pivots, ``[G, D]``.

    Raises:
        torch.linalg.LinAlgError: If a damped matrix is not positive definite. The
            former entries below the diagonals are lost then, too.
    """
    pivots = matrices.new_empty(matrices.shape[:2])
    shifts = torch.as_tensor(damping, dtype=pivots.dtype, device=pivots.device)
    shifts = shifts.expand(len(matrices))
    for matrix, shift, found in zip(matrices, shifts, pivots, strict=True):
        for start, end in strips(len(matrix)):
            # transposed, since cholesky reads the lower triangle
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
    """Split the rows of a matrix into up to eight strips, but fewer if it is small."""
    step = max(_LEAST_STRIP, -(-size // 8))
    return [(start, min(start + step, size)) for start in range(0, size, step)]
