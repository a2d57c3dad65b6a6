"""Backward passes, seen from a hook inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from tn_extensions.layers import engine


def accumulated(backward: Callable[[Tensor, Tensor, Tensor], Any]) -> list[bool]:
    """Tell whether a pass adds to the gradients of weight and bias, by its nodes."""
    layer, seen = nn.Linear(3, 2), []
    x = torch.rand(4, 3, requires_grad=True)
    output = layer(x)
    engine.node_of(output).register_hook(
        lambda *_: seen.extend(map(engine.accumulates, layer.parameters()))
    )
    backward(output.sum(), x, layer.weight)
    return seen


@pytest.mark.parametrize(
    ("backward", "expected"),
    [
        (lambda loss, x, weight: loss.backward(), [True, True]),
        (lambda loss, x, weight: loss.backward(create_graph=True), [True, True]),
        (lambda loss, x, weight: loss.backward(inputs=[x]), [False, False]),
        (lambda loss, x, weight: loss.backward(inputs=[weight]), [True, False]),
        (lambda loss, x, weight: torch.autograd.grad(loss, x), [False, False]),
        (lambda loss, x, weight: torch.autograd.grad(loss, weight), [False, False]),
    ],
)
@pytest.mark.filterwarnings("ignore:Using backward")
def test_accumulates(backward: Any, expected: list[bool]) -> None:
    assert accumulated(backward) == expected


def test_accumulates_not_when_frozen() -> None:
    assert not engine.accumulates(torch.ones(2))


@pytest.mark.parametrize("keeps", [False, True])
def test_passes(keeps: bool) -> None:
    x, seen = torch.rand(3, requires_grad=True), []
    loss = x.square().sum()
    loss.grad_fn.register_hook(
        lambda *_: seen.append((engine.current_pass() >= 0, engine.keeps_graph()))
    )
    loss.backward(retain_graph=keeps)
    assert seen == [(True, keeps)]
    assert engine.current_pass() == -1


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3), (2, 2, 4, 3)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_nodes_are_reached(shape: tuple[int, ...], bias: bool, in_place: bool) -> None:
    output = nn.Linear(3, 2, bias=bias)(torch.rand(shape))
    seen: list[Tensor] = []
    engine.node_of(output).register_hook(lambda _, outer: seen.append(outer[0]))
    used = torch.tanh_(output) if in_place else torch.tanh(output)
    g = torch.rand_like(used)
    used.backward(g)
    (found,) = seen
    expected = g * (1 - used.detach().square())
    torch.testing.assert_close(found.reshape(expected.shape), expected)


def test_leaves() -> None:
    a, b, c = (torch.rand(2, requires_grad=True) for _ in range(3))
    assert engine.leaves_of(a * b, None, torch.rand(2)).keys() == {id(a), id(b)}
    assert engine.leaves_of(c).keys() == {id(c)}
    leaf = (a * b).detach().requires_grad_()
    assert engine.leaves_of(leaf * c).keys() == {id(leaf), id(c)}


def test_innermost() -> None:
    x = torch.rand(2, requires_grad=True)
    first, again = x.sin(), x.cos()
    last = (first + again).exp()
    nodes = [tensor.grad_fn for tensor in (first, again, last)]
    assert set(engine.innermost(last * again, nodes)) == set(nodes[:2])
    assert engine.innermost(first, nodes) == nodes[:1]
    assert engine.innermost(torch.rand(2), nodes) == []


def test_kept_through_checkpointing() -> None:
    """Kept tensors are dropped with the checkpointed segment, and restored from it."""
    kept: list[engine.Kept] = []

    def segment(x: Tensor) -> Tensor:
        middle = x.tanh()
        kept.append(engine.Kept(middle))
        return middle.square()

    x = torch.rand(3, requires_grad=True)
    output = checkpoint(segment, x, use_reentrant=False)
    torch.testing.assert_close(kept[0].get(), x.detach().tanh())
    output.sum().backward()


def test_traced() -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(engine.is_traced(x))
        return x * 2

    function(torch.ones(2))
    vmap(function)(torch.ones(2))
    with torch._subclasses.FakeTensorMode():
        function(torch.ones(2))
    make_fx(function, tracing_mode="fake")(torch.ones(2))
    assert seen == [False, True, False, True]
