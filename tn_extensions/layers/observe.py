"""What layers see in a forward pass, and the gradients of their outputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tn_extensions.errors import describe
from tn_extensions.layers import hooks
from tn_extensions.layers.computed import Calls, cut, leaves_of
from tn_extensions.layers.module import Groups, Use, reason_against

OnGradient = Callable[[str, int, Tensor], None]


class Uses(defaultdict[str, list[Use]]):
    """Uses by the layers' names, in order; to be cleared after each batch.

    Attributes:
        num_data: Number of data of the batch, to be set before the forward pass.
            ``None``: one for each row of an input.
        as_cat: By name and number of a use that sees several rows of each datum, what
            makes the use of it in which these lie ``num_data`` apart.
        leaves: What took the place of computed kernels and biases, by ``id``.
    """

    def __init__(self) -> None:
        super().__init__(list)
        self.num_data: int | None = None
        self.as_cat: dict[tuple[str, int], Callable[[], Use]] = {}
        self.leaves: dict[int, Tensor] = {}

    def add(
        self,
        owner: str,
        name: str,
        x: Tensor,
        kernel: Tensor,
        output: Tensor,
        of: Callable[..., Use],
        on_gradient: OnGradient,
    ) -> None:
        """Add a use, and have the gradient of its output shown.

        Args:
            owner: Whom errors name.
            name: Name of the layer.
            x: Its input.
            kernel: What multiplies it.
            output: Its output.
            of: Makes the use of ``output``, ``num_data`` and ``is_cat``.
            on_gradient: As for :func:`observed`.

        Raises:
            ValueError: If the first axis of the input is not that of the data.
        """
        argument = f"the input of layer {name!r}"
        is_linear = kernel.dim() == 2
        if x.dim() < 2 or not (is_linear or x.dim() == kernel.dim()):
            rule = "have a first axis of data"
            raise ValueError(describe(owner, argument, rule, f"shape {[*x.shape]}"))
        num_data = len(x) if self.num_data is None else self.num_data
        several = len(x) != num_data
        if several and (not num_data or not len(x) or len(x) % num_data):
            rule = f"have rows for each of the {num_data} data, along its first axis"
            raise ValueError(describe(owner, argument, rule, f"{len(x)} rows"))
        number, use = len(self[name]), of(output=output, num_data=num_data)
        self[name].append(use)
        if several and num_data > 1:
            # the output itself would be held
            like = torch.empty_like(output, device="meta")
            known: dict[str, Any] = {"output": like, "num_data": num_data}

            def as_cat() -> Use:
                return replace(of(**known, is_cat=True), node=use.node)

            self.as_cat[name, number] = as_cat
        if output.requires_grad:
            shape = output.shape

            def after(gradient: Tensor | None) -> None:
                if gradient is not None:
                    on_gradient(name, number, gradient.detach().reshape(shape))

            hooks.on_gradient(output, after)

    def clear(self) -> None:
        """Forget what a batch has left."""
        super().clear()
        self.as_cat.clear()
        self.leaves.clear()


@contextmanager
def observed(
    owner: str,
    layers: Mapping[str, nn.Module],
    groups: Groups,
    on_gradient: OnGradient,
    tied: Mapping[str, Sequence[nn.Module]] = MappingProxyType({}),
) -> Iterator[Uses]:
    """Gather the uses of layers in forward passes, in order.

    Compiled models run without compilation. Layers that compute their kernels have a
    use for each call of torch's functions, see :mod:`tn_extensions.layers.computed`.

    Args:
        owner: Whom errors name.
        layers: Modules by name.
        groups: How groups are treated.
        on_gradient: Called in backward passes with the name of the layer, the number
            of its use and the gradient of its output.
        tied: By name of a layer, others that have its parameters: their uses are uses
            of the layer. None of them computes its kernel.

    Yields:
        The uses.
    """
    uses = Uses()
    wanted = {id(p) for module in layers.values() for p in module.parameters()}

    def add(name: str, x: Tensor, kernel: Tensor, output: Tensor, of: Any) -> None:
        uses.add(owner, name, x, kernel, output, of, on_gradient)

    def after(name: str, module: Any, x: Tensor, output: Tensor) -> None:
        of = partial(Use.of, module, x, groups=groups)
        add(name, x, module.weight, output, of)

    def on_call(func: Any, arguments: dict[str, Any], name: str) -> Tensor:
        kernel, bias = arguments["weight"], arguments["bias"]
        reached = leaves_of(kernel, bias)
        own = {id(p) for p in layers[name].parameters()}
        if not torch.is_grad_enabled() or own.isdisjoint(reached):
            output: Tensor = func(*arguments.values())
            return output
        if not (wanted | uses.leaves.keys()).isdisjoint(reached.keys() - own):
            argument = f"a kernel of layer {name!r}"
            rule, found = "depend on its own parameters only", "others, too"
            raise NotImplementedError(describe(owner, argument, rule, found))
        leaves = cut(kernel), cut(bias)
        uses.leaves |= {id(leaf): leaf for leaf in leaves if leaf is not None}
        arguments = {**arguments, **dict(zip(("weight", "bias"), leaves, strict=True))}
        output = func(*arguments.values())
        of = partial(Use.of_call, arguments, leaves=leaves, computed=(kernel, bias))
        add(name, arguments["input"], kernel, output, of)
        return output

    others = [(name, module) for name, own in tied.items() for module in own]
    with ExitStack() as stack:
        # what is compiled already does not call hooks that come later
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, module in [*layers.items(), *others]:
            if reason_against(module) is None:
                handle = hooks.on_call(module, partial(after, name))
                stack.callback(handle.remove)
            else:
                stack.enter_context(_calls_seen(module, partial(on_call, name=name)))
        yield uses


@contextmanager
def _calls_seen(module: Any, on_call: Callable[..., Tensor]) -> Iterator[None]:
    """Show the calls of torch's functions in a module's ``forward``."""
    own, forward = vars(module).get("forward"), module.forward

    def seen(*args: Any, **kwargs: Any) -> Any:
        with Calls(on_call):
            return forward(*args, **kwargs)

    module.forward = seen
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


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
