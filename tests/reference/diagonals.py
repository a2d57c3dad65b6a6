"""Diagonals of Hessians, backpropagated by dense Jacobians of torch's own modules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

Diagonals = dict[str, Tensor]


def backpropagated(
    modules: nn.Sequential, x: Tensor, h: Tensor, g: Tensor
) -> Diagonals:
    """Of each parameter of a chain of modules, in which samples do not meet.

    ``h_x = (J^2)^T h_y + sum_y g_y d^2 y / dx^2``, and so for parameters, module by
    module.

    Args:
        modules: The chain.
        x: Its input.
        h: Diagonal of the Hessian by its output.
        g: Gradient by its output.
    """
    inputs = [x.detach()]
    for module in modules:
        inputs.append(module(inputs[-1]).detach())
    result: Diagonals = {}
    for number, module in reversed([*enumerate(modules)]):
        x = inputs[number]
        parameters = {name: p.detach() for name, p in module.named_parameters()}
        for name, value in parameters.items():

            def output(p: Tensor, name: str = name) -> Tensor:
                return functional_call(module, {**parameters, name: p}, x)  # noqa: B023

            result[f"{number}.{name}"] = _pulled(output, value, h, g)
        h = _pulled(module, x, h, g)
        (g,) = _vjp(module, x, g)
    return result


def _pulled(function: Callable[[Tensor], Tensor], x: Tensor, h: Tensor, g: Tensor):  # type: ignore[no-untyped-def]
    jacobian = jacrev(function)(x).reshape(h.numel(), *x.shape)
    squared = torch.tensordot(h.flatten(), jacobian.square(), 1)
    own = hessian(lambda flat: (g * function(flat.view_as(x))).sum())(x.flatten())
    return squared + own.diagonal().view_as(x)


def _vjp(function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> tuple[Tensor]:
    _, vjp = torch.func.vjp(function, x)
    found: tuple[Tensor] = vjp(g)
    return found
