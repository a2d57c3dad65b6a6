"""Detect matrices of low rank, such as gradients of small batches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.linalg import matrix_norm

from tn_extensions.layers.host import holds

_SHARE = 4
"""Rows per basis vector: with rank at most a quarter, the work is at least halved."""
_EXTRA = 8
"""Number of additional combinations for the basis, and of combinations to check it."""
_TOLERANCE = 40
"""Tolerance in units of rounding; rounding of a gradient's own sums is of this size."""


@dataclass
class Span:
    """Find a basis of the columns of matrices of low rank.

    A gradient of few data with few positions has low rank, as it is a sum of ``N S``
    outer products. The basis comes from random combinations of columns, and other
    combinations check it (Halko, Martinsson and Tropp, "Finding structure with
    randomness", 2011). After matrices of higher rank, there are no further attempts,
    since an attempt takes a twentieth of the time of solving.

    Args:
        is_low: Whether the last matrices had low rank.
    """

    is_low: bool = True

    def split(self, matrices: Tensor) -> tuple[Tensor, Tensor] | None:
        """Split matrices into the product of orthonormal columns ``Q`` and ``Q^T X``.

        Args:
            matrices: Matrices ``X``, ``[..., M, D]``.

        Returns:
            ``Q``, ``[..., M, r]``, and ``Q^T X``, ``[..., r, D]``, with ``r`` about a
            quarter of ``M``. ``None``: the rank is higher.
        """
        rows, columns = matrices.shape[-2:]
        rank = rows // _SHARE + _EXTRA
        if not self.is_low or 2 * rank > rows or matrices.device.type != "cpu":
            return None
        combinations = matrices @ _random(columns, rank + _EXTRA, matrices.dtype)
        basis = torch.linalg.qr(combinations[..., :rank])[0]
        others = combinations[..., rank:]
        left = others - basis @ (basis.mT @ others)
        limit = _TOLERANCE * torch.finfo(matrices.dtype).eps
        norms, bounds = matrix_norm(left), limit * matrix_norm(others)
        self.is_low = holds((norms <= bounds).all())
        return (basis, basis.mT @ matrices) if self.is_low else None


@lru_cache(maxsize=32)
def _random(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Draw a random matrix; a fixed seed makes processes and resumed runs agree."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):  # the cached matrix is used in other modes, too
        return torch.randn(rows, columns, dtype=dtype, generator=generator)
