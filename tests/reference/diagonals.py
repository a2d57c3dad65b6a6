"""Diagonals of Hessians, backpropagated by dense Jacobians of torch's own modules."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

Diagonals = dict[str, Tensor]


def of_loss(loss: Any, z: Tensor, y: Tensor, elementwise: bool) -> Tensor:
    """Diagonal of a loss's Hessian.

    Args:
        loss: The loss.
        z: What it is given.
        y: Targets.
        elementwise: Whether to take the softmax of a cross entropy for elementwise.
    """
    if elementwise and isinstance(loss, nn.CrossEntropyLoss):
        p = z.softmax(1)
        t = nn.functional.one_hot(y, z.shape[1]).movedim(-1, 1)
        count = z.numel() / z.shape[1] if loss.reduction == "mean" else 1
        # -t log(s(z)) with s' = s (1 - s), by the chain rule
        slope, bend = p * (1 - p), p * (1 - p) * (1 - 2 * p)
        return t * (slope.square() / p.square() - bend / p) / count
    full = hessian(lambda flat: loss(flat.view_as(z), y))(z.flatten())
    return full.diagonal().view_as(z)


def backpropagated(
    modules: nn.Sequential,
    x: Tensor,
    h: Tensor,
    g: Tensor,
    residual: Collection[int] = (),
) -> Diagonals:
    """Of each parameter of a chain of modules, in which samples do not meet.

    ``h_x = (J^2)^T h_y + sum_y g_y d^2 y / dx^2``, and so for parameters, module by
    module.

    Args:
        modules: The chain.
        x: Its input.
        h: Diagonal of the Hessian by its output.
        g: Gradient by its output.
        residual: Numbers of modules whose input is added to their output.
    """
    inputs = [x.detach()]
    for number, module in enumerate(modules):
        y = module(inputs[-1]).detach()
        inputs.append(y + inputs[-1] if number in residual else y)
    result: Diagonals = {}
    for number, module in reversed([*enumerate(modules)]):
        x = inputs[number]
        parameters = {name: p.detach() for name, p in module.named_parameters()}
        for name, value in parameters.items():

            def output(p: Tensor, name: str = name) -> Tensor:
                return functional_call(module, {**parameters, name: p}, x)  # noqa: B023

            result[f"{number}.{name}"] = _pulled(output, value, h, g)
        new_h, (new_g,) = _pulled(module, x, h, g), _vjp(module, x, g)
        if number in residual:
            new_h, new_g = new_h + h, new_g + g
        h, g = new_h, new_g
    return result


def _pulled(
    function: Callable[[Tensor], Tensor], x: Tensor, h: Tensor, g: Tensor
) -> Tensor:
    jacobian = jacrev(function)(x).reshape(h.numel(), *x.shape)
    squared = torch.tensordot(h.flatten(), jacobian.square(), 1)
    own = hessian(lambda flat: (g * function(flat.view_as(x))).sum())(x.flatten())
    return squared + own.diagonal().view_as(x)


def _vjp(function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> tuple[Tensor]:
    _, vjp = torch.func.vjp(function, x)
    found: tuple[Tensor] = vjp(g)
    return found
