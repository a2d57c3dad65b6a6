"""Matrices of low rank, as gradients of small batches are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.linalg import matrix_norm

from tn_extensions.layers.host import holds

_SHARE = 4
"""Of its rows, one in so many may be independent: then the work is halved at least."""
_EXTRA = 8
"""Combinations beyond that number that a basis is made of; and as many to check it."""
_TOLERANCE = 40
"""In units of rounding; that of a gradient's own sums is of this size."""


@dataclass
class Span:
    """Finds a basis of what the columns of matrices span, until that was too much.

    A gradient of few data, each of few positions, has low rank: that of ``N S`` outer
    products. The basis is that of random combinations of columns, others tell what it
    leaves (Halko, Martinsson and Tropp, "Finding structure with randomness", 2011).

    Args:
        is_low: Whether the last matrices had low rank; with others, there is no
            further attempt, as each takes a twentieth of the time of solving.
    """

    is_low: bool = True

    def split(self, matrices: Tensor) -> tuple[Tensor, Tensor] | None:
        """Orthonormal columns ``Q`` and ``Q^T matrices``, whose product they are.

        Args:
            matrices: ``[..., M, D]``.

        Returns:
            ``[..., M, r]`` and ``[..., r, D]`` with ``r`` about a quarter of ``M``;
            None if that is not enough.
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
    """The same for all, so that processes and resumed trainings agree."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):  # it is kept, for other modes, too
        return torch.randn(rows, columns, dtype=dtype, generator=generator)
