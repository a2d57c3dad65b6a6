"""Products of a layer's blocks with vectors that are shaped like its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix
from tn_extensions.kronecker.kronecker_product import KroneckerProduct
from tn_extensions.layers.module import (
    Groups,
    kernel_matrices,
    kernel_of_matrices,
    num_groups,
    transposed_groups,
)

Block = KroneckerProduct | EigendecomposedMatrix
Blocks = Mapping[str, Block]
"""A layer's blocks: ``"joint"`` for weight and bias, or ``"weight"`` and ``"bias"``."""


def multiply(
    module: Any, groups: Groups, blocks: Blocks, vectors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Multiply a layer's blocks with vectors.

    Args:
        module: The layer.
        groups: How to treat its groups.
        blocks: Its blocks, of float32 or wider.
        vectors: Vectors ``[*shape, V]`` for its ``"weight"``, its ``"bias"`` or both.

    Returns:
        The products, with the shapes and dtypes of the vectors.
    """
    count = num_groups(module, groups)
    of_transposed = {"weight": transposed_groups(module), "bias": None}
    matrices = {
        key: _matrices(own, count, of_transposed[key]) for key, own in vectors.items()
    }
    if "joint" in blocks:
        both = torch.cat([matrices["weight"], matrices["bias"]], 2)
        weight, bias = (blocks["joint"] @ both).tensor_split([-1], 2)
        found = {"weight": weight, "bias": bias}
    else:
        found = {key: blocks[key] @ own for key, own in matrices.items()}
    return {
        key: kernel_of_matrices(found[key].to(own.dtype), own.shape, of_transposed[key])
        for key, own in vectors.items()
    }


def _matrices(vectors: Tensor, groups: int, of_transposed: int | None) -> Tensor:
    """Convert a parameter's vectors ``[*shape, V]`` to ``[G, CO, D, V]``."""
    # factors are float32 if parameters have half precision
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    rows, *columns, number = vectors.shape
    if of_transposed is None:
        return vectors.reshape(groups, rows // groups, prod(columns), number)
    # treat the axis of vectors as the kernel's last axis
    (matrices,) = kernel_matrices(vectors.unsqueeze(0), groups, of_transposed)
    return matrices.unflatten(2, (-1, number))
