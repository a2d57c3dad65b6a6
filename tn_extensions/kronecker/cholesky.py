"""Cholesky decompositions that fall back to double precision."""

from __future__ import annotations

from warnings import warn

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]


def cholesky(damped: Tensor, retry_double_precision: bool = True) -> Tensor:
    """Decompose matrices; if this fails in single precision, use double precision.

    Args:
        damped: Matrices, ``[G, D, D]``.
        retry_double_precision: Whether to try double precision.

    Returns:
        Lower triangles, ``[G, D, D]``, of the dtype of the matrices.

    Raises:
        torch.linalg.LinAlgError: If a matrix is not positive definite.
    """
    try:
        return torch.linalg.cholesky(damped)
    except LinAlgError as error:
        if not retry_double_precision or damped.dtype == torch.float64:
            raise
        warn(
            f"Failed to compute Cholesky decomposition in {damped.dtype} "
            f"precision with error {error}. Retrying in double precision...",
            stacklevel=2,
        )
        return torch.linalg.cholesky(damped.double()).to(damped.dtype)
