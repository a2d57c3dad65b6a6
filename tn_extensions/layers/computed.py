"""Gradients through kernels that are computed from a layer's parameters.

A layer may compute what it multiplies by (``weight_norm``, ``prune``, weight
standardisation, LoRA). Where its calls are observed, the kernel is cut off from the
parameters, so that the graph between them is at hand, small, and free of data.
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
    """Gradients of the parameters that kernels and biases are computed from.

    Args:
        pairs: Uses, and gradients ``[N, C_out, P]`` of their outputs.
        parameters: The parameters.

    Yields:
        For each parameter ``[n, *shape]``, summed over uses, of so many data at a time
        as the memory budget allows; in all, of all data in order.
    """
    num_data = pairs[0][0].num_data
    tensors = [t for use, _ in pairs for t in use.computed if t is not None]
    # the graph between both holds a few tensors of either size
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
    """Products of vectors ``[n, *shape]`` with a tensor's Jacobian, by parameter."""

    def products(each: Tensor, is_batched: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            computed,
            parameters,
            each,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=is_batched,
        )

    # precision was decided in the forward pass
    with torch.autocast(computed.device.type, enabled=False):
        try:
            return products(vectors, True)
        except RuntimeError:
            # functions of the user's own may not be made for a batch
            rows = [products(vector, False) for vector in vectors]
        columns = zip(*rows, strict=True)
        return [
            None if own[0] is None else torch.stack([t for t in own if t is not None])
            for own in columns
        ]
