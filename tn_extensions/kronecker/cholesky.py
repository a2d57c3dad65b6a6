"""Cholesky decompositions of factors of few data."""

from __future__ import annotations

from warnings import warn

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]


def cholesky(damped: Tensor, retry_double_precision: bool = True) -> Tensor:
    """Decompose, in double precision where single precision fails.

    Args:
        damped: Matrices ``[G, D, D]``.
        retry_double_precision: Whether to try again.

    Returns:
        Lower triangles, of the type of the matrices.

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
