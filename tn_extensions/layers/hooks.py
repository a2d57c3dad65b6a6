"""Hooks on layers and on the nodes of their outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tn_extensions.layers.engine import node_of


class Hook:
    """A hook on a module, which does nothing once it is pickled or copied.

    Args:
        call: What it calls.
    """

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    # torch.compile must not trace what happens in Python only
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any) -> None:
        """Make the call."""
        self._call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        # logs nothing, at a level below all; needs the standard library only
        return partial, (logging.getLogger("tn_extensions").log, -1)


def on_call(
    module: nn.Module,
    call: Callable[[nn.Module, Tensor, Any], None],
    first: bool = False,
) -> Any:
    """Be told of a layer's calls.

    Args:
        module: The layer.
        call: Called after each with the module (a replica of it has its hooks, too),
            its input and its output.
        first: Whether to be told before the hooks that the layer has.

    Returns:
        A handle, whose ``remove`` ends it.
    """

    def after(
        own: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> None:
        # a transposed convolution takes the size of its output, too
        call(own, args[0] if args else named["input"], output)

    return module.register_forward_hook(Hook(after), with_kwargs=True, prepend=first)


def on_gradient(output: Tensor, call: Callable[[Tensor | None], None]) -> None:
    """Be told of the gradient of a layer's output in each backward pass.

    It is read where the node of the output has run: hooks on modules, and on outputs
    that are views, fail where an activation works in place.

    Args:
        output: The output, which requires a gradient.
        call: Called with the gradient, of the entries of the output in their order, but
            maybe of another shape. It must not hold the node.
    """

    def after(_: Any, gradients: tuple[Tensor | None, ...]) -> None:
        # of a batch of passes (vmap), it cannot even be reshaped
        call(gradients[0])

    node_of(output).register_hook(after)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module that was compiled or distributed."""
    inner: Any = model
    while True:
        if isinstance(inner, nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        else:
            return cast(nn.Module, inner)


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Compute on the side of a pass, without gradients and in full precision."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
