"""Kronecker factors: sums of outer products of vectors.

A factor is a tensor: a matrix ``[G, D, D]`` or, as long as there are few vectors, a
low-rank factor ``R``, ``[G, r, D]``, which represents the matrix ``R^T R``. With up to
half as many rows as columns, a low-rank factor takes less memory than the matrix, and
less time to compute, multiply and invert. With up to seven tenths, its singular vectors
are cheaper than the eigenvectors of the matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import cast

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from tn_extensions import functional
from tn_extensions.conv import Conv
from tn_extensions.kronecker.square import above
from tn_extensions.layers.host import is_finite
from tn_extensions.layers.module import Pairs, Use


def is_low_rank(factor: Tensor) -> bool:
    """Tell whether a factor is a low-rank factor, by its shape."""
    return factor.shape[-2] < factor.shape[-1]


def dense(factor: Tensor) -> Tensor:
    """Return the matrix ``[G, D, D]`` that a factor represents."""
    return factor.mT @ factor if is_low_rank(factor) else factor


def diagonal(matrices: Tensor) -> Tensor:
    """Return the diagonals of matrices."""
    return matrices.diagonal(dim1=-2, dim2=-1)


def squared_sums(factor: Tensor) -> Tensor:
    """Compute the matrix' diagonal ``[G, D]``; it is finite iff all vectors are."""
    return factor.square().sum(1) if is_low_rank(factor) else diagonal(factor)


def trace(factor: Tensor) -> Tensor:
    """Compute the trace of each group, ``[G]``."""
    return squared_sums(factor).sum(1)


def eigenbasis(factor: Tensor, complete: bool = False) -> tuple[Tensor, Tensor]:
    """Compute eigenvalues and eigenvectors of a factor's matrix.

    Args:
        factor: A matrix or a low-rank factor with ``D`` columns.
        complete: Whether to add eigenvectors for the eigenvalue zero of a low-rank
            factor.

    Returns:
        Eigenvalues ``[G, r]`` and eigenvectors ``[G, D, r]``, with ``r = D`` for a
        matrix or if complete. Eigenvalues that are negative by rounding are set to
        zero.

    Raises:
        torch.linalg.LinAlgError: If the decomposition fails.
    """
    if not is_low_rank(factor):
        values, vectors = _eigh(factor)
        epsilon = factor.shape[-1] * torch.finfo(values.dtype).eps
        rounding = epsilon * values.abs().amax(-1, keepdim=True)
        return values.masked_fill((values < 0) & (values > -rounding), 0), vectors
    _, values, vectors = torch.linalg.svd(factor, full_matrices=complete)
    missing = vectors.shape[1] - values.shape[1]
    return torch.nn.functional.pad(values.square(), (0, missing)), vectors.mT


def completed(basis: Tensor) -> Tensor:
    """Append orthonormal vectors to a basis ``[G, D, r]`` until it is full."""
    missing = basis.shape[1] - basis.shape[2]
    if not missing:
        return basis
    vectors, _ = torch.linalg.qr(basis, mode="complete")
    return torch.cat([basis, vectors[:, :, -missing:]], 2)


def logdet(matrices: Tensor) -> Tensor:
    """Compute log-determinants of positive semi-definite matrices, ``[G]``.

    They are minus infinity if a matrix is singular up to rounding.
    """
    sign, values = torch.linalg.slogdet(matrices)
    return values.masked_fill(sign <= 0, -torch.inf)


def _eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Decompose matrices; if this fails in single precision, use double precision.

    For matrices of few data, LAPACK may not converge in single precision, or return
    nan.
    """
    is_double = matrices.dtype == torch.float64
    try:
        values, vectors = torch.linalg.eigh(matrices)
    except LinAlgError:
        if is_double:
            raise
    else:
        if is_finite(values, vectors):
            return values, vectors
        if is_double:
            raise LinAlgError("no finite eigenvectors were found")
    values, vectors = _eigh(matrices.double())
    return values.to(matrices.dtype), vectors.to(matrices.dtype)


def add_input_factor(
    uses: Sequence[Use],
    approx: str,
    factor: Tensor | None,
    scale: float,
    bias: bool,
    rank_limit: float,
) -> Tensor:
    """Add the input factor of a layer's uses, whose positions share the weight.

    Args:
        uses: Uses on the same data.
        approx: ``"expand"``: add ``scale / S sum_{n,s} U U^T`` over the ``S`` positions
            of all uses. ``"reduce"``: add ``scale sum_n m m^T`` with the means ``m`` of
            patches over these positions.
        factor: Factor with ``D`` columns that is added to in place. ``None``: zeros.
        scale: Scale of what is added.
        bias: Whether patches end with a one.
        rank_limit: Largest number of rows of a low-rank factor, as a fraction of its
            columns; below one.

    Returns:
        The factor.
    """
    positions = sum(use.num_positions for use in uses)
    if approx == "expand":
        scale /= positions
        for use in uses:
            x, conv = use.x, use.conv
            if _stays_low_rank(
                factor, len(x) * use.num_positions, _size(conv, bias), rank_limit
            ):
                patches = functional.unfold_input(x, conv)
                factor = _append(factor, vectors_of(patches, conv.groups), scale, bias)
            else:
                factor = functional.kfac_expand(
                    x, conv, bias=bias, scale=scale, out=_matrix(factor)
                )
        return cast(Tensor, factor)
    (use, *others) = uses
    stays_low_rank = _stays_low_rank(
        factor, len(use.x), _size(use.conv, bias), rank_limit
    )
    if not (stays_low_rank or others):
        scale /= positions**2
        return functional.kfac_reduce(
            use.x, use.conv, bias=bias, scale=scale, out=_matrix(factor)
        )
    weighted = (
        functional.patch_mean(use.x, use.conv) * (use.num_positions / positions)
        for use in uses
    )
    mean = sum(weighted, start=torch.zeros(()))
    if stays_low_rank:
        return _append(factor, mean.transpose(0, 1), scale, bias)
    conv = _pointwise(use.conv.groups * mean.shape[2], use.conv.groups)
    return functional.kfac_expand(
        mean.flatten(1).unsqueeze(2), conv, bias=bias, scale=scale, out=_matrix(factor)
    )


def add_gradient_factor(
    pairs: Pairs, approx: str, factor: Tensor | None, scale: float, rank_limit: float
) -> Tensor:
    """Add the gradient factor of a layer's uses.

    Args:
        pairs: Uses on the same data, and the gradients of their outputs.
        approx: ``"expand"``: add ``scale sum_{n,s} g g^T`` over the positions of all
            uses. ``"reduce"``: add ``scale sum_n m m^T`` with the sums ``m`` of
            gradients over these positions.
        factor: Factor with ``CO`` columns that is added to in place. ``None``: zeros.
        scale: Scale of what is added.
        rank_limit: Largest number of rows of a low-rank factor, as a fraction of its
            columns; below one.

    Returns:
        The factor.
    """
    gradients = [(g.unflatten(2, use.conv.output_size), use.conv) for use, g in pairs]
    if approx == "reduce":
        _, conv = gradients[0]
        total = torch.stack([g.sum(2) for _, g in pairs]).sum(0)
        conv = _pointwise(conv.out_channels, conv.groups)
        gradients = [(total.unsqueeze(2), conv)]
    for g, conv in gradients:
        rows, size = len(g) * prod(conv.output_size), conv.out_channels // conv.groups
        if _stays_low_rank(factor, rows, size, rank_limit):
            factor = _append(factor, vectors_of(g.flatten(2), conv.groups), scale)
        else:
            factor = functional.gradient_factor_expand(
                g, conv, scale=scale, out=_matrix(factor)
            )
    return cast(Tensor, factor)


def averaged(
    factor: Tensor | None, new: Tensor, decay: float, rank_limit: float
) -> Tensor:
    """Compute ``decay factor + (1 - decay) new``, an exponential moving average.

    Args:
        factor: A matrix, whose upper triangle is averaged in place, or a low-rank
            factor. ``None``: the average is ``new``.
        new: A matrix, which may be overwritten, or a low-rank factor.
        decay: Weight of the former average.
        rank_limit: Largest number of rows of a low-rank factor, as a fraction of its
            columns; below one.

    Returns:
        The average: a low-rank factor, or a matrix whose upper triangle is valid.
    """
    if factor is None:
        return new
    weight = 1 - decay
    if not (is_low_rank(factor) or is_low_rank(new)):
        for rows, columns, part in above(factor):
            part.lerp_(new[:, rows, columns], weight)
        return factor
    if not is_low_rank(factor):
        return _add_rows(factor, new, decay, weight)
    if not is_low_rank(new):
        return _add_rows(new, factor, weight, decay)
    both = torch.cat([factor * sqrt(decay), new * sqrt(weight)], 1)
    return both if both.shape[1] <= rank_limit * both.shape[2] else both.mT @ both


def _add_rows(matrices: Tensor, vectors: Tensor, beta: float, alpha: float) -> Tensor:
    """Compute ``beta matrices + alpha vectors^T vectors`` in place, above diagonals."""
    for rows, columns, part in above(matrices):
        for own, each in zip(part, vectors, strict=True):
            own.addmm_(each[:, rows].T, each[:, columns], beta=beta, alpha=alpha)
    return matrices


def rescale(factor: Tensor, scale: float) -> Tensor:
    """Multiply the matrix that a factor represents by a number, in place."""
    return factor.mul_(sqrt(scale) if is_low_rank(factor) else scale)


def vectors_of(patches: Tensor, groups: int) -> Tensor:
    """View patches ``[N, G * D, P]`` as rows ``[G, N * P, D]``."""
    rows = patches.unflatten(1, (groups, -1)).permute(1, 0, 3, 2)
    return rows.reshape(groups, -1, rows.shape[-1])


def _matrix(factor: Tensor | None) -> Tensor | None:
    return None if factor is None else dense(factor)


def _pointwise(channels: int, groups: int) -> Conv:
    """Create the hyper-parameters of a layer with one position."""
    return Conv.make(channels, channels, 1, 1, groups=groups)


def _size(conv: Conv, bias: bool) -> int:
    return conv.in_channels // conv.groups * prod(conv.kernel_size) + bias


def _stays_low_rank(factor: Tensor | None, new: int, size: int, limit: float) -> bool:
    if factor is not None and not is_low_rank(factor):
        return False
    held = 0 if factor is None else factor.shape[1]
    return held + new <= limit * size


def _append(
    factor: Tensor | None, rows: Tensor, scale: float, bias: bool = False
) -> Tensor:
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if bias:
        rows = torch.nn.functional.pad(rows, (0, 1), value=1.0)
    rows = rows * sqrt(scale)
    return rows if factor is None else torch.cat([factor, rows], 1)
