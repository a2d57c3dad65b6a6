"""Query the autograd engine and graph."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor

from tn_extensions.compiler.tracing import is_compiled


def node_of(output: Tensor) -> Any:
    """Return the node of autograd's graph that computed a layer's output.

    The node's gradient has the entries of the output's gradient, in the same order. A
    ``Linear`` on inputs with more than two axes returns a view. An in-place activation
    replaces the node of this view, so that no pass reaches the old one; the node of the
    view's base stays.
    """
    base = output._base
    is_reshaped = base is not None and base.numel() == output.numel()
    return base.grad_fn if is_reshaped and base is not None else output.grad_fn


def leaves_of(*tensors: Tensor | None) -> dict[int, Tensor]:
    """Find the leaves of autograd's graph that tensors depend on, by their ``id``."""
    found: dict[int, Tensor] = {}
    stack = []
    for tensor in tensors:
        if tensor is not None and tensor.grad_fn is not None:
            stack.append(tensor.grad_fn)
        elif tensor is not None and tensor.requires_grad:
            found[id(tensor)] = tensor
    seen = set(stack)
    while stack:
        node: Any = stack.pop()
        if node.name().endswith("AccumulateGrad"):
            found[id(node.variable)] = node.variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return found


def innermost(output: Tensor, nodes: Container[Any]) -> list[Any]:
    """Find the last ones of some nodes, from which no other of them is reached.

    Args:
        output: Tensor at which backward passes start.
        nodes: The nodes.

    Returns:
        Those nodes from which a backward pass reaches no other of the nodes.
    """
    reaches: dict[Any, bool] = {}
    stack: list[Any] = [] if output.grad_fn is None else [output.grad_fn]
    while stack:
        node = stack[-1]
        following = [n for n, _ in node.next_functions if n is not None]
        unknown = [n for n in following if n not in reaches]
        if unknown:
            stack += unknown
        else:
            reaches[stack.pop()] = any(reaches[n] or n in nodes for n in following)
    ends = [node for node, reaches_another in reaches.items() if not reaches_another]
    return [node for node in ends if node in nodes]


def is_traced(x: Tensor) -> bool:
    """Tell whether a transform or a trace is running, instead of a training pass.

    These are transforms of ``torch.func`` (``vmap``, ``grad``, ``jacrev``),
    ``torch.jit.trace`` and exports.
    """
    # torch has no public name for the stack of transforms
    is_transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return is_transformed or torch._C._is_tracing() or is_compiled(x)


def current_pass() -> int:
    """Return the number of the running backward pass; -1 outside of any."""
    return torch._C._current_graph_task_id()


def keeps_graph() -> bool:
    """Tell whether the running backward pass keeps the graph."""
    return torch._C._autograd._get_current_graph_task_keep_graph()


def accumulates(parameter: Tensor) -> bool:
    """Tell whether the running backward pass adds to a parameter's ``.grad``.

    ``loss.backward()`` does. ``torch.autograd.grad`` and passes to other ``inputs`` do
    not.
    """
    if not parameter.requires_grad:
        return False
    node = torch.autograd.graph.get_gradient_edge(parameter).node
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:
        # the parameter is an input of torch.autograd.grad
        return False


class Kept:
    """A tensor that is saved for the backward pass.

    Autograd saves it like the input of a layer, so that gradient checkpointing and
    other hooks on saved tensors drop and restore it, too.
    """

    def __init__(self, tensor: Tensor) -> None:
        anchor = torch.empty(0, requires_grad=True)
        # torch 2.11 frees what a node saved as soon as the node's output is gone
        self._output: Any = _Save.apply(anchor, tensor.detach())

    def get(self) -> Tensor:
        """Return the tensor."""
        (tensor,) = self._output.grad_fn.saved_tensors
        return tensor


class _Save(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tensor: Tensor) -> Tensor:
        ctx.save_for_backward(tensor)
        return anchor.clone()
