"""Gradients of parameters that kernels are computed from.

A layer may compute its kernel (``weight_norm``, ``prune``, weight standardisation,
LoRA). Observed calls get a detached kernel. The graph from the parameters to the
original kernel is then separate, small, and does not depend on the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tn_extensions.compiler.budget import slices
from tn_extensions.layers.gradients import per_sample_gradients
from tn_extensions.layers.module import Pairs


def parameter_gradients(
    pairs: Pairs, parameters: Sequence[Tensor]
) -> Iterator[list[Tensor]]:
    """Compute per-sample gradients of parameters that kernels are computed from.

    Args:
        pairs: Uses, and gradients ``[N, C_out, P]`` of their outputs.
        parameters: The parameters.

    Yields:
        For each parameter, gradients ``[n, *shape]`` that are summed over uses. Each
        chunk has as many data as the memory budget allows; chunks are in order.
    """
    num_data = pairs[0][0].num_data
    tensors = [t for use, _ in pairs for t in use.computed if t is not None]
    # estimate: the graph holds a few tensors of the sizes of parameters and kernels
    entries = 4 * sum(t.numel() for t in (*tensors, *parameters))
    for chunk in slices(num_data, entries * parameters[0].element_size()):
        totals = [p.new_zeros(chunk.stop - chunk.start, *p.shape) for p in parameters]
        for use, g in pairs:
            part = [(replace(use, x=use.x[chunk]), g[chunk])]
            for key, computed in zip(("weight", "bias"), use.computed, strict=True):
                if computed is None or not computed.requires_grad:
                    continue
                own = per_sample_gradients(part, key).to(computed.dtype)
                own = own.reshape(-1, *computed.shape)
                products = _vector_jacobian_products(computed, parameters, own)
                for total, product in zip(totals, products, strict=True):
                    if product is not None:
                        total += product
        yield totals


def _vector_jacobian_products(
    computed: Tensor, parameters: Sequence[Tensor], vectors: Tensor
) -> Sequence[Tensor | None]:
    """Multiply vectors ``[n, *shape]`` with a tensor's Jacobian by each parameter."""

    def products(each: Tensor, is_batched: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            computed,
            parameters,
            each,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=is_batched,
        )

    # use the dtypes of the forward pass
    with torch.autocast(computed.device.type, enabled=False):
        try:
            return products(vectors, True)
        except RuntimeError:
            # users' functions may not support batches of gradients
            rows = [products(vector, False) for vector in vectors]
        columns = zip(*rows, strict=True)
        return [
            None if own[0] is None else torch.stack([t for t in own if t is not None])
            for own in columns
        ]
