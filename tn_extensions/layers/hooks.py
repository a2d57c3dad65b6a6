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
    """A hook on a module; its copies, also by pickling, do nothing.

    Args:
        call: The function that it calls.
    """

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    # torch.compile must not trace the hook
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any) -> None:
        """Call the function."""
        self._call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        # a function of the standard library that logs nothing: the level is too low
        return partial, (logging.getLogger("tn_extensions").log, -1)


def on_call(
    module: nn.Module,
    call: Callable[[nn.Module, Tensor, Any], None],
    first: bool = False,
) -> Any:
    """Run a function after each call of a layer.

    Args:
        module: The layer.
        call: The function. It takes the module (which may be a replica, as replicas
            have its hooks), its input and its output.
        first: Whether to run before the other hooks of the layer.

    Returns:
        A handle with a method ``remove``.
    """

    def after(
        own: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> None:
        # a transposed convolution may have a second argument, the output size
        call(own, args[0] if args else named["input"], output)

    return module.register_forward_hook(Hook(after), with_kwargs=True, prepend=first)


def on_gradient(output: Tensor, call: Callable[[Tensor | None], None]) -> None:
    """Run a function on the gradient of a layer's output in each backward pass.

    The gradient is read from the node of the output. Hooks on modules, and on outputs
    that are views, fail with in-place activations.

    Args:
        output: The output, which requires a gradient.
        call: The function. The gradient has the entries of the output in their order,
            but may have another shape. The function must not hold a reference to the
            node.
    """

    def after(_: Any, gradients: tuple[Tensor | None, ...]) -> None:
        # do not reshape: a batch of passes (vmap) does not allow it
        call(gradients[0])

    node_of(output).register_hook(after)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the original module of a compiled or distributed one."""
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
    """Compute without gradients and without autocast, also within a pass."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
