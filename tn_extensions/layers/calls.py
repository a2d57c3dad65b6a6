"""Calls of torch's functions as uses of the parameters that they multiply by.

Where a model is a function of its parameters, there may be no modules to observe. What
a call of ``linear`` or a convolution multiplies by tells whose use it is, also of a
parameter that several modules share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tn_extensions.errors import describe
from tn_extensions.layers.computed import Calls, cut
from tn_extensions.layers.module import Groups, Use
from tn_extensions.layers.observe import OnGradient, Uses


@contextmanager
def calls_observed(
    owner: str,
    parameters: Mapping[str, Tensor],
    groups: Groups,
    on_gradient: OnGradient,
) -> Iterator[Uses]:
    """Gather the uses of parameters in forward passes, in order.

    A use is named by its kernel; by its bias if the kernel is none of the parameters.
    Kernel and bias are cut off: the parameters are in autograd's graph of the outputs
    only if they have other uses.

    Args:
        owner: Whom errors name.
        parameters: What the model multiplies by and adds, by name; with gradients.
        groups: How groups are treated.
        on_gradient: Called in backward passes with the name of the use, its number and
            the gradient of its output.

    Yields:
        The uses. Their ``names`` are those of kernel and bias.
    """
    uses = Uses()
    name_of = {id(parameter): name for name, parameter in parameters.items()}

    def on_call(func: Any, arguments: dict[str, Any]) -> Tensor:
        computed = arguments["weight"], arguments["bias"]
        names = tuple(name_of.get(id(tensor)) for tensor in computed)
        kernel_name, bias_name = names
        name = bias_name if kernel_name is None else kernel_name
        if name is None or not torch.is_grad_enabled():
            output: Tensor = func(*arguments.values())
            return output
        leaves = tuple(
            tensor if own is None else cut(tensor)
            for tensor, own in zip(computed, names, strict=True)
        )
        arguments = {**arguments, "weight": leaves[0], "bias": leaves[1]}
        output = func(*arguments.values())
        wanted = tuple(
            None if own is None else leaf
            for leaf, own in zip(leaves, names, strict=True)
        )
        of = partial(_use_of, groups, arguments, names=names, leaves=wanted)
        x, kernel = arguments["input"], arguments["weight"]
        uses.add(owner, name, x, kernel, output, of, on_gradient)
        first, *_, last = uses[name][0], uses[name][-1]
        if _kind(first) != _kind(last):
            rule = "be used in calls of one kind and as many groups"
            found = f"{_kind(first)} and {_kind(last)} (transposed, groups)"
            raise NotImplementedError(
                describe(owner, name, rule, found, "Leave it out")
            )
        return output

    # what is compiled already does not show its calls
    with torch.compiler.set_stance("force_eager"), Calls(on_call):
        yield uses


def _use_of(groups: Groups, arguments: Mapping[str, Any], **others: Any) -> Use:
    use = Use.of_call(arguments, **others)
    if groups == "separate" or use.conv.groups == 1:
        return use
    # what curvlinops does: the layer as one without groups
    x = use.x.unflatten(1, (use.conv.groups, -1)).mean(1)
    return replace(use, x=x, conv=replace(use.conv, in_channels=x.shape[1], groups=1))


def _kind(use: Use) -> tuple[bool, int]:
    return use.conv.transposed, use.conv.groups
