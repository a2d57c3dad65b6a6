"""Slow and obvious twins of the functions of models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian

Tensors = dict[str, Tensor]


def named(model: nn.Module) -> Tensors:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: nn.Module, loss: Any, x: Tensor, y: Tensor) -> Tensors:
    """Gradients of the loss of each datum alone, ``[N, *shape]``."""
    own = named(model)
    found = []
    for n in range(len(x)):
        value = loss(model(x[n : n + 1]), y[n : n + 1])
        found.append(torch.autograd.grad(value, [*own.values()]))
    return dict(zip(own, map(torch.stack, zip(*found, strict=True)), strict=True))


def norms(model: nn.Module, loss: Any, x: Tensor, y: Tensor) -> Tensors:
    each = gradients(model, loss, x, y)
    return {name: g.flatten(1).norm(dim=1) for name, g in each.items()}


def total(norms: Tensors) -> Tensor:
    return torch.stack([*norms.values()]).square().sum(0).sqrt()


def ggn_diagonal(
    model: nn.Module, loss: Any, data: Iterable[tuple[Tensor, Tensor]]
) -> Tensors:
    """``J^T H J`` of each batch's loss by autograd; means weigh batches by length."""
    own, data = named(model), [*data]
    num_data = sum(len(x) for x, _ in data)
    found = {name: torch.zeros_like(p) for name, p in own.items()}
    for x, y in data:
        output = model(x)
        size = output.numel()
        H = hessian(lambda f, y=y: loss(f, y), output.detach())  # type: ignore[no-untyped-call]
        H = H.reshape(size, size)
        rows = [
            torch.autograd.grad(entry, [*own.values()], retain_graph=True)
            for entry in output.flatten()
        ]
        weight = len(x) / num_data if loss.reduction == "mean" else 1
        for name, j in zip(own, map(torch.stack, zip(*rows, strict=True)), strict=True):
            flat = j.flatten(1)
            each = torch.einsum("ap,ab,bp->p", flat, H, flat) * weight
            found[name] += each.reshape(found[name].shape)
    return found
