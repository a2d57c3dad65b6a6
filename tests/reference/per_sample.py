"""Quantities of every parameter from per-sample Jacobians by torch.func."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

Tensors = dict[str, Tensor]


def jacobians(model: nn.Module, x: Tensor) -> Tensors:
    """Of the output with respect to parameters, ``[N, C, *parameter.shape]``."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def output(parameters: Tensors, sample: Tensor) -> Tensor:
        return functional_call(model, parameters, sample[None])[0].flatten()

    samples = [jacrev(output)(parameters, sample) for sample in x]
    return {name: torch.stack([j[name] for j in samples]) for name in parameters}


def gradients(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensors:
    """Of a loss of the batch's outputs: per sample, ``[N, *parameter.shape]``."""
    outputs = model(x).detach().requires_grad_()
    (g,) = torch.autograd.grad(loss(outputs), outputs)
    return contract(jacobians(model, x), g[None], squeeze=True)


def square_roots(model: nn.Module, x: Tensor, root: Tensor) -> Tensors:
    """Of the GGN, from one of the loss Hessian, ``[V, N, *parameter.shape]``.

    Args:
        model: The model.
        x: Its input.
        root: ``[V, N, C]``.
    """
    return contract(jacobians(model, x), root)


def contract(jacobians: Tensors, vectors: Tensor, squeeze: bool = False) -> Tensors:
    """Multiply transposed Jacobians with vectors ``[V, N, ...]``."""
    products = {
        name: torch.einsum("nc...,vnc->vn...", j, vectors.flatten(2))
        for name, j in jacobians.items()
    }
    return {name: p[0] if squeeze else p for name, p in products.items()}


def hessian_diagonals(
    model: nn.Module, x: Tensor, losses: Callable[[Tensor, int], Tensor]
) -> Tensors:
    """Diagonals of each sample's Hessian, ``[N, *parameter.shape]``.

    Args:
        model: The model.
        x: Its input.
        losses: From a sample's output ``[1, C]`` and its number to its part of the
            loss.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    result: Tensors = {}
    for name, parameter in parameters.items():
        diagonals = []
        for n, sample in enumerate(x):

            def loss(p: Tensor, sample: Tensor = sample, n: int = n) -> Tensor:
                changed = {**parameters, name: p.view_as(parameter)}  # noqa: B023
                return losses(functional_call(model, changed, sample[None]), n)

            block = hessian(loss)(parameter.flatten())
            diagonals.append(block.diagonal().view_as(parameter))
        result[name] = torch.stack(diagonals)
    return result
