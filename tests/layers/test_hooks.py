"""Hooks on layers and their outputs."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tn_extensions.layers import hooks


def test_calls_and_gradients() -> None:
    """Also by name, and where an activation works in place on a view."""
    layer = nn.Linear(3, 2)
    seen: list[tuple[nn.Module, Tensor]] = []
    gradients: list[Tensor | None] = []

    def call(module: nn.Module, x: Tensor, output: Tensor) -> None:
        seen.append((module, x))
        hooks.on_gradient(output, gradients.append)

    handle = hooks.on_call(layer, call)
    x = torch.rand(4, 5, 3)
    output = torch.relu_(layer(input=x))
    output.sum().backward()
    ((module, given),) = seen
    assert module is layer
    assert given is x
    (gradient,) = gradients
    assert gradient is not None
    assert_close(gradient.reshape(output.shape), (output > 0).to(output))
    handle.remove()
    layer(x)
    assert len(seen) == 1


def test_copies_do_nothing() -> None:
    layer = nn.Linear(3, 2)
    seen: list[Any] = []
    hooks.on_call(layer, lambda *called: seen.append(called))
    for copy in (deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        copy(torch.rand(4, 3))
    assert not seen


def test_unwrapped() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    compiled = torch.compile(model, backend="eager")
    assert hooks.unwrapped(compiled) is model
    assert hooks.unwrapped(model) is model


def test_exactly() -> None:
    x = torch.rand(3, 3, requires_grad=True)
    with torch.autocast("cpu"), hooks.exactly(x.device):
        product = x @ x
    assert product.dtype == torch.float32
    assert not product.requires_grad
