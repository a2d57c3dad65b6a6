"""Backpropagation with an estimate of the weight's gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tn_extensions.dropout.layers import Layer
from tn_extensions.sampling import Draw, Sampled

Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class EstimatedGradient(torch.autograd.Function):
    """A layer whose gradients are exact but for the weight's, which is estimated.

    Of the input, the sampled slices are saved, and nothing else.
    """

    generate_vmap_rule = False

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        compute: Compute,
        layer: Layer,
        sampled: Sampled,
    ) -> Tensor:
        """What the layer computes."""
        return compute(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save the sampled slices."""
        x, weight, _, _, layer, sampled = inputs
        draws = sampled.draws.values()
        ctx.layer = layer
        ctx.scales = {index: draw.scale for index, draw in sampled.draws.items()}
        # Positions are saved as tensors, although nothing is gained: checkpointing
        # replaces saved tensors, and slices are only right with their own positions.
        ctx.save_for_backward(
            layer.store(sampled, x),
            weight if ctx.needs_input_grad[0] else None,
            *(draw.indices for draw in draws),
            *(draw.weights for draw in draws),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Exact gradients of input and bias, an estimate of the weight's."""
        stored, weight, *drawn = ctx.saved_tensors
        number = len(ctx.scales)
        draws = {
            index: Draw(indices, scale, weights)
            for (index, scale), indices, weights in zip(
                ctx.scales.items(), drawn[:number], drawn[number:], strict=True
            )
        }
        wanted = ctx.needs_input_grad
        layer: Layer = ctx.layer
        gradients: list[Tensor | None] = [None] * len(wanted)
        if wanted[1]:
            sampled = Sampled(layer.network, draws)
            x = layer.restore(sampled, stored)
            operands = {"x": _summable(x), "g": _summable(g)}
            gradients[1] = sampled.run(operands, narrowed=["x"]).to(g.dtype)
        if wanted[0]:
            gradients[0] = layer.input_gradient(weight, g)
        if wanted[2]:
            gradients[2] = layer.bias_gradient(g)
        return tuple(gradients)


def _summable(tensor: Tensor) -> Tensor:
    """Half precision only where torch's kernels accumulate in more."""
    if tensor.is_cuda:
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
