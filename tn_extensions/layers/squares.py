"""Sums of squares of a parameter's per-sample gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from tn_extensions import functional
from tn_extensions.compiler.budget import current_budget
from tn_extensions.layers.gradients import of_one_dtype, per_sample_gradients
from tn_extensions.layers.module import Pairs, Use


def squared_norms(pairs: Pairs, key: str) -> Tensor:
    """Compute squared norms of a parameter's per-sample gradients.

    Gradients are formed for some data at a time, or not at all.

    Args:
        pairs: Uses on the same data, and gradients ``[N, C_out, P]`` of their outputs.
        key: ``"weight"`` or ``"bias"``.

    Returns:
        Squared norms, ``[N]``.
    """
    pairs = _joined(pairs)
    if len(pairs) > 1:
        chunks = _gradients(pairs, key)
        return torch.cat([own.flatten(1).square_().sum(1) for own in chunks])
    ((use, g),) = pairs
    g = g.unflatten(2, use.conv.output_size)
    if key == "bias":
        return functional.bias_per_sample_grad_norm(g, use.conv)
    x, g = of_one_dtype(use.x, g)
    return functional.per_sample_grad_norm(x, g, use.conv)


def diagonal(columns: Sequence[Pairs], key: str) -> Tensor:
    """Sum squares of a parameter's per-sample gradients over columns and data.

    Args:
        columns: For each column, uses on the same data, and gradients ``[N, C_out, P]``
            of their outputs.
        key: ``"weight"`` or ``"bias"``.

    Returns:
        The sums, shaped like the kernel or bias of a convolution.
    """
    columns = [_joined(pairs) for pairs in columns]
    if any(len(pairs) > 1 for pairs in columns):
        chunks = (own for pairs in columns for own in _gradients(pairs, key))
        return sum((own.square_().sum(0) for own in chunks), start=torch.zeros(()))
    use, _ = columns[0][0]
    S = torch.stack([g for ((_, g),) in columns])
    S = S.unflatten(3, use.conv.output_size)
    if key == "bias":
        return functional.bias_ggn_diagonal(S, use.conv)
    x, S = of_one_dtype(use.x, S)
    return functional.ggn_diagonal(x, S, use.conv)


def _joined(pairs: Pairs) -> Pairs:
    """Merge several uses of a ``Linear`` to one, by concatenating their positions."""
    if len(pairs) == 1 or not all(use.is_linear for use, _ in pairs):
        return pairs
    x = torch.cat([use.x for use, _ in pairs], 2)
    use, _ = pairs[0]
    (dim,) = use.conv.dims
    dims = (replace(dim, input_size=x.shape[2]),)
    joined = replace(use, x=x, conv=replace(use.conv, dims=dims))
    return [(joined, torch.cat([g for _, g in pairs], 2))]


def _gradients(pairs: Pairs, key: str) -> Iterator[Tensor]:
    """Yield per-sample gradients ``[n, *shape]``, in chunks that fit the budget."""
    convs = [use.conv for use, _ in pairs]
    sizes = [c.out_channels if key == "bias" else prod(c.weight_shape) for c in convs]
    entry = max(g.element_size() for _, g in pairs)
    # memory for the sum over uses and for a summand
    step = max(1, current_budget() // (2 * max(sizes) * max(4, entry)))
    for start in range(0, max(len(pairs[0][1]), 1), step):
        chunk = slice(start, start + step)
        part: list[tuple[Use, Tensor]] = [
            (replace(use, x=use.x[chunk]), g[chunk]) for use, g in pairs
        ]
        yield per_sample_gradients(part, key)
