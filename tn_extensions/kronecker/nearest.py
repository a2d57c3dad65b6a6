"""Kronecker products that are closest to blocks of a Fisher or GGN.

A block is ``sum_n vec(G_n) vec(G_n)^T`` for gradients ``G_n``, ``[CO, D]``. Its entries
can be rearranged to a matrix that maps ``A`` to ``sum_n G_n A G_n^T``; the transpose
maps ``B`` to ``sum_n G_n^T B G_n``. The leading singular vectors are the product ``B
(x) A`` that is closest to the block in the Frobenius norm. Both maps preserve positive
semi-definite matrices, so ``A`` and ``B`` are positive semi-definite.

Reference: Van Loan and Pitsianis, "Approximation with Kronecker products", 1993; for
networks, Koroko et al., "Efficient approximations of the Fisher matrix in neural
networks using Kronecker product singular value decomposition", 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from math import prod
from typing import TypeVar
from warnings import warn

import torch
from torch import Tensor
from torch.linalg import matrix_norm

from tn_extensions.compiler.budget import slices
from tn_extensions.layers.gradients import per_sample_gradients
from tn_extensions.layers.module import Pairs, kernel_matrices

K = TypeVar("K", bound=Hashable)
Sweep = Callable[[Mapping[K, Tensor], bool], Mapping[K, Tensor]]


def gradient_products(
    pairs: Pairs, factor: Tensor, is_left: bool, bias: bool
) -> Tensor:
    """Compute ``sum_n G_n^T B G_n`` or ``sum_n G_n A G_n^T`` for each group.

    Gradients ``G_n = sum g U^T``, summed over uses, are formed for as many data at a
    time as the memory budget allows.

    Args:
        pairs: Uses, and the gradients of their outputs, ``[N, C_out, P]``.
        factor: ``B``, ``[G, CO, CO]``, or ``A``, ``[G, D, D]``; symmetric.
        is_left: Whether the factor is ``B``.
        bias: Whether the last column of ``G_n`` is the gradient by the bias.

    Returns:
        The sum, ``[G, D, D]`` if ``is_left``, else ``[G, CO, CO]``; of the factor's
        dtype.
    """
    conv = pairs[0][0].conv
    entries = 3 * conv.out_channels * (conv.in_channels // conv.groups)
    entries *= prod(conv.kernel_size)
    total: Tensor | None = None
    for chunk in slices(pairs[0][0].num_data, entries * factor.element_size()):
        data = torch.arange(chunk.start, chunk.stop, device=factor.device)
        part = [(use.of_data(data), g[chunk]) for use, g in pairs]
        kernels = per_sample_gradients(part, "weight").to(factor.dtype)
        transposed = conv.groups if conv.transposed else None
        matrices = kernel_matrices(kernels, conv.groups, transposed)
        if bias:
            column = per_sample_gradients(part, "bias").to(factor.dtype)
            columns = column.reshape(*matrices.shape[:3], 1)
            matrices = torch.cat([matrices, columns], 3)
        # [G, n, D, CO] or [G, n, CO, D]: the factor multiplies the last axis
        matrices = matrices.transpose(0, 1)
        rows = matrices.mT if is_left else matrices
        right = rows.transpose(1, 2).flatten(2)
        left = (rows @ factor.unsqueeze(1)).transpose(1, 2).flatten(2)
        found = left @ right.mT
        total = found if total is None else total.add_(found)
    assert total is not None
    return total


def nearest_products(
    sweep: Sweep[K],
    sizes: Mapping[K, tuple[int, int]],
    like: Tensor,
    tolerance: float,
    max_sweeps: int,
) -> tuple[dict[K, Tensor], dict[K, Tensor]]:
    """Find the closest Kronecker products of several blocks by power iteration.

    Args:
        sweep: Function that runs a pass over all data. It takes ``B`` of some blocks
            and ``True``, or ``A`` and ``False``, and returns the sums of
            :func:`gradient_products`.
        sizes: Groups and ``CO`` of each block.
        like: Tensor with the dtype and device of factors.
        tolerance: The iteration of a block stops once a factor of unit norm changes by
            at most this.
        max_sweeps: Largest number of passes over the data. If they do not suffice, it
            warns.

    Returns:
        ``B`` and ``A`` of each block, with equal norms.
    """
    lefts = {
        key: torch.eye(size, dtype=like.dtype, device=like.device).repeat(groups, 1, 1)
        for key, (groups, size) in sizes.items()
    }
    rights: dict[K, Tensor] = {}
    scales: dict[K, Tensor] = {}
    active = list(sizes)
    is_left, changes = True, dict.fromkeys(sizes, torch.inf)
    for _ in range(max_sweeps):
        source, target = (lefts, rights) if is_left else (rights, lefts)
        found = sweep({key: source[key] for key in active}, is_left)
        for key in active:
            scales[key] = norms = matrix_norm(found[key], keepdim=True)
            new = found[key] / norms.masked_fill(norms == 0, 1)
            if key in target:
                changes[key] = float(matrix_norm(target[key] - new).max())
            target[key] = new
        is_left = not is_left
        active = [key for key in active if changes[key] > tolerance]
        if not active:
            break
    else:
        worst = max(changes[key] for key in active)
        warn(
            f"Closest Kronecker products still change by {worst:.1e} after "
            f"{max_sweeps} passes over the data.",
            stacklevel=2,
        )
    for key, scale in scales.items():
        root = scale.sqrt()
        lefts[key], rights[key] = lefts[key] * root, rights[key] * root
    return lefts, rights
