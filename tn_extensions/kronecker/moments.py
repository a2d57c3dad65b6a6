"""Per-sample gradients, and their second moments in a Kronecker-factored basis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tn_extensions import functional
from tn_extensions.compiler.budget import current_budget
from tn_extensions.kronecker.factors import vectors_of
from tn_extensions.kronecker.layers import Pairs, Use, kernel_matrices

_CHUNKS = 32
"""Part of the memory budget that a chunk takes: larger ones are no faster."""


class Basis(NamedTuple):
    """What a layer's gradients are rotated into.

    Args:
        left: ``Q_B``, ``[G, CO, s]``.
        right: ``Q_A``, ``[G, D, r]``.
        bias: Whether the last row of ``right`` is that of a joint bias.
    """

    left: Tensor
    right: Tensor
    bias: bool

    @property
    def sizes(self) -> tuple[int, int, int]:
        """``D``, ``s`` and ``r``."""
        return self.right.shape[1], self.left.shape[2], self.right.shape[2]


def per_sample_gradients(pairs: Pairs, key: str) -> Tensor:
    """Gradients of a layer's parameter, summed over its uses, ``[N, *shape]``.

    Args:
        pairs: Uses, and gradients ``[N, C_out, P]`` of their outputs.
        key: ``"weight"`` or ``"bias"``.
    """

    def of_use(use: Use, g: Tensor) -> Tensor:
        shaped = g.unflatten(2, use.conv.output_size)
        if key == "bias":
            return functional.bias_per_sample_grad(shaped, use.conv)
        x, shaped = of_one_dtype(use.x, shaped)
        return functional.per_sample_grad(x, shaped, use.conv)

    return _sum(of_use(use, g) for use, g in pairs)


def of_one_dtype(x: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Convert tensors, of which autocast may have made one in half precision."""
    dtype = torch.promote_types(x.dtype, S.dtype)
    return x.to(dtype), S.to(dtype)


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    """Sum of new tensors, into the first of them."""
    first, *others = tensors
    for other in others:
        first += other
    return first


def bias_moments(pairs: Pairs, left: Tensor) -> Tensor:
    """``sum_n (Q_B^T g_n)^2`` of the gradients' sums over positions and uses.

    Args:
        pairs: Uses, and the gradients of their outputs, ``[N, C_out, P]``.
        left: ``Q_B``, ``[G, CO, s]``.

    Returns:
        Moments, ``[G, s, 1]``.
    """
    gradients = per_sample_gradients(pairs, "bias").to(left.dtype).unsqueeze(2)
    return (vectors_of(gradients, len(left)) @ left).square_().sum(1).unsqueeze(2)


def kernel_moments(pairs: Pairs, basis: Basis) -> Tensor:
    """``sum_n (Q_B^T G_n Q_A)^2`` of the gradients ``G_n = sum g U^T`` over all uses.

    Gradients of a few samples at a time, within the memory budget, are formed and
    rotated, or made of rotated patches: whichever takes fewer operations.

    Args:
        pairs: Uses, and the gradients of their outputs, ``[N, C_out, P]``.
        basis: What to rotate into.

    Returns:
        Moments, ``[G, s, r]``.
    """
    (_, g), *others = pairs
    if not others and g.shape[2] == 1:
        # the gradients have rank one: squares of products are products of squares
        left, right = _rotated(*pairs[0], basis)
        return left.square_().mT @ right.square_()
    _, rows, columns = basis.sizes
    moments = basis.left.new_zeros(len(basis.left), rows, columns)
    step = min(_samples_in_budget(use, basis) for use, _ in pairs)
    for start in range(0, len(g), step):
        chunk = slice(start, start + step)
        total = _sum(
            _gradients(replace(use, x=use.x[chunk]), g[chunk], basis)
            for use, g in pairs
        )
        moments += total.square_().sum(1)
    return moments


def _gradients(use: Use, g: Tensor, basis: Basis) -> Tensor:
    """Rotated gradients of samples, ``[G, N, s, r]``."""
    if _rotates_patches(use, basis):
        left, right = (
            rows.unflatten(1, (len(g), -1)) for rows in _rotated(use, g, basis)
        )
        return left.mT @ right
    groups, _, rows = basis.left.shape
    conv = replace(use.conv, out_channels=groups * rows)
    g = g.to(basis.left.dtype).unflatten(1, (groups, -1))
    g = (basis.left.mT @ g).flatten(1, 2)
    shaped = g.unflatten(2, use.conv.output_size)
    gradients = functional.per_sample_grad(use.x.to(g.dtype), shaped, conv)
    transposed_groups = conv.groups if conv.transposed else None
    matrices = kernel_matrices(gradients, groups, transposed_groups).movedim(1, 0)
    if not basis.bias:
        return matrices @ basis.right.unsqueeze(1)
    weight, bias = basis.right.tensor_split([-1], 1)
    rotated = matrices @ weight.unsqueeze(1)
    sums = g.sum(2).unflatten(1, (groups, -1)).movedim(1, 0)
    return rotated.addcmul_(sums.unsqueeze(3), bias.unsqueeze(1))


def _rotated(use: Use, g: Tensor, basis: Basis) -> tuple[Tensor, Tensor]:
    """Rotated output gradients and patches, ``[G, N * P, s or r]``."""
    groups = len(basis.left)
    left = vectors_of(g, groups).to(basis.left.dtype) @ basis.left
    patches = vectors_of(functional.unfold_input(use.x, use.conv), groups)
    if not basis.bias:
        return left, patches @ basis.right
    weight, bias = basis.right.tensor_split([-1], 1)
    return left, torch.baddbmm(bias, patches, weight)


def _rotates_patches(use: Use, basis: Basis) -> bool:
    size, rows, columns = basis.sizes
    patches = use.num_positions * columns * (size + rows)
    return patches <= rows * size * (use.num_positions + columns)


def _samples_in_budget(use: Use, basis: Basis) -> int:
    size, rows, columns = basis.sizes
    positions = use.num_positions
    if _rotates_patches(use, basis):
        entries = positions * (2 * size + columns + 2 * rows) + rows * columns
    else:
        entries = positions * rows + rows * (2 * size + columns)
    each = len(basis.left) * entries * basis.left.element_size()
    return max(1, current_budget() // _CHUNKS // each)
