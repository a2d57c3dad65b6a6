"""What layers see in a forward pass, and the gradients of their outputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from tn_extensions.errors import describe
from tn_extensions.kronecker.layers import Groups, Use

Uses = defaultdict[str, list[Use]]
OnGradient = Callable[[str, int, Tensor], None]


@contextmanager
def observed(
    owner: str,
    layers: Mapping[str, nn.Module],
    groups: Groups,
    on_gradient: OnGradient,
) -> Iterator[Uses]:
    """Gather the uses of layers in forward passes, in order.

    Gradients are read by a hook on the output, not on the module: the latter fails
    where an activation works in place.

    Args:
        owner: Whom errors name.
        layers: Modules by name.
        groups: How groups are treated.
        on_gradient: Called in backward passes with the name of the layer, the number
            of its use and the gradient of its output.

    Yields:
        The uses by name, to be cleared after each batch.
    """
    uses: Uses = defaultdict(list)

    def after(module: Any, inputs: tuple[Any, ...], output: Tensor, name: str) -> None:
        if len(inputs) != 1:
            rule = "be called with one positional argument"
            layer = f"layer {name!r}"
            raise ValueError(describe(owner, layer, rule, len(inputs)))
        use = Use.of(module, inputs[0], output, groups)
        number = len(uses[name])
        uses[name].append(use)
        if output.requires_grad:
            output.register_hook(partial(on_gradient, name, number))

    handles = [
        module.register_forward_hook(partial(after, name=name))
        for name, module in layers.items()
    ]
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def innermost(output: Tensor, uses: Mapping[str, list[Use]]) -> set[str]:
    """Layers from whose outputs a backward pass reaches no other one's.

    Args:
        output: Where passes start.
        uses: Uses by the layers' names.

    Returns:
        Names of the layers.
    """
    layers = {use.node: name for name, own in uses.items() for use in own}
    reaches: dict[Any, bool] = {}
    stack: list[Any] = [] if output.grad_fn is None else [output.grad_fn]
    while stack:
        node = stack[-1]
        following = [n for n, _ in node.next_functions if n is not None]
        unknown = [n for n in following if n not in reaches]
        if unknown:
            stack += unknown
        else:
            reaches[stack.pop()] = any(reaches[n] or n in layers for n in following)
    ends = [node for node, reaches_another in reaches.items() if not reaches_another]
    return {layers[node] for node in ends if node in layers}
