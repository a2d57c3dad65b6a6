"""Per-sample gradients of a layer's parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tn_extensions import functional
from tn_extensions.layers.module import Pairs, Use


def per_sample_gradients(pairs: Pairs, key: str) -> Tensor:
    """Compute per-sample gradients of a layer's parameter, summed over its uses.

    Args:
        pairs: Uses, and gradients ``[N, C_out, P]`` of their outputs.
        key: ``"weight"`` or ``"bias"``.

    Returns:
        Gradients, ``[N, *shape]``.
    """

    def of_use(use: Use, g: Tensor) -> Tensor:
        shaped = g.unflatten(2, use.conv.output_size)
        if key == "bias":
            return functional.bias_per_sample_grad(shaped, use.conv)
        x, shaped = of_one_dtype(use.x, shaped)
        return functional.per_sample_grad(x, shaped, use.conv)

    return _sum(of_use(use, g) for use, g in pairs)


def of_one_dtype(x: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Convert tensors to one dtype; under autocast, one may have half precision."""
    dtype = torch.promote_types(x.dtype, S.dtype)
    return x.to(dtype), S.to(dtype)


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    """Sum tensors, in place of the first one."""
    first, *others = tensors
    for other in others:
        first += other
    return first
