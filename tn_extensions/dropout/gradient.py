"""Backpropagation with an estimated weight gradient."""

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
    """A layer with an estimated weight gradient; its other gradients are exact.

    It only saves the sampled slices of the input.
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
        """Compute the layer's output."""
        return compute(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save the sampled slices."""
        x, weight, _, _, layer, sampled = inputs
        draws = sampled.draws.values()
        ctx.layer = layer
        ctx.scales = {index: draw.scale for index, draw in sampled.draws.items()}
        # Save positions as tensors, too: checkpointing replaces saved tensors by those
        # of another forward pass, and slices need the positions of their own draw.
        ctx.save_for_backward(
            layer.store(sampled, x),
            weight if ctx.needs_input_grad[0] else None,
            *(draw.indices for draw in draws),
            *(draw.weights for draw in draws),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Compute exact gradients of input and bias, and estimate the weight's."""
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
    """Convert half precision to float32, unless kernels accumulate in that anyway."""
    if tensor.is_cuda:
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
