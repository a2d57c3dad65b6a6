"""Kernels that are computed from a layer's parameters, and gradients through them.

A layer may compute what it multiplies by (``weight_norm``, ``prune``, weight
standardisation, LoRA). Its calls of torch's functions are then what the algebra of this
package knows: each one is a use of its own. The kernel is cut off from the parameters
there, so that the graph between them is at hand, small, and free of data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tn_extensions.compiler.budget import slices
from tn_extensions.layers.gradients import per_sample_gradients
from tn_extensions.layers.module import Pairs


def _linear(input: Any, weight: Any, bias: Any = None) -> None: ...


def _conv(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> None: ...


def _transposed(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
) -> None: ...


_SIGNATURES: dict[Any, inspect.Signature] = {
    F.linear: inspect.signature(_linear),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), inspect.signature(_conv)),
    **dict.fromkeys(
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        inspect.signature(_transposed),
    ),
}
"""Torch's functions, whose own signatures Python cannot see."""


class Calls(TorchFunctionMode):
    """Shows calls of ``linear`` and convolutions.

    Args:
        on_call: Called with the function and its arguments by name, in order; what it
            returns is the output.
    """

    def __init__(self, on_call: Callable[[Any, dict[str, Any]], Tensor]) -> None:
        super().__init__()
        self._on_call = on_call

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function."""
        kwargs = kwargs or {}
        if func not in _SIGNATURES:
            return func(*args, **kwargs)
        bound = _SIGNATURES[func].bind(*args, **kwargs)
        bound.apply_defaults()
        return self._on_call(func, bound.arguments)


def leaves_of(*tensors: Tensor | None) -> dict[int, Tensor]:
    """The leaves of autograd's graph that tensors depend on, by their ``id``."""
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


def cut(tensor: Tensor | None) -> Tensor | None:
    """The tensor as a leaf, if it has a gradient."""
    if tensor is None or not tensor.requires_grad:
        return tensor
    return tensor.detach().requires_grad_()


def parameter_gradients(
    pairs: Pairs, parameters: Sequence[Tensor]
) -> Iterator[list[Tensor]]:
    """Gradients of the parameters that kernels and biases are computed from.

    Args:
        pairs: Uses, and gradients ``[N, C_out, P]`` of their outputs.
        parameters: The parameters.

    Yields:
        For each parameter ``[n, *shape]``, summed over uses, of so many data at a time
        as the memory budget allows; in all, of all data in order.
    """
    num_data = pairs[0][0].num_data
    tensors = [t for use, _ in pairs for t in use.computed if t is not None]
    # the graph between both holds a few tensors of either size
    entries = 4 * sum(t.numel() for t in (*tensors, *parameters))
    for chunk in slices(num_data, entries * parameters[0].element_size()):
        totals = [p.new_zeros(chunk.stop - chunk.start, *p.shape) for p in parameters]
        for use, g in pairs:
            part = [(replace(use, x=use.x[chunk]), g[chunk])]
            for key, computed in zip(("weight", "bias"), use.computed, strict=True):
                if computed is None or not computed.requires_grad:
                    continue
                own = per_sample_gradients(part, key).to(computed.dtype)
                own = own.reshape(-1, *computed.shape)
                products = _vector_jacobian_products(computed, parameters, own)
                for total, product in zip(totals, products, strict=True):
                    if product is not None:
                        total += product
        yield totals


def _vector_jacobian_products(
    computed: Tensor, parameters: Sequence[Tensor], vectors: Tensor
) -> Sequence[Tensor | None]:
    """Products of vectors ``[n, *shape]`` with a tensor's Jacobian, by parameter."""

    def products(each: Tensor, is_batched: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            computed,
            parameters,
            each,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=is_batched,
        )

    # precision was decided in the forward pass
    with torch.autocast(computed.device.type, enabled=False):
        try:
            return products(vectors, True)
        except RuntimeError:
            # functions of the user's own may not be made for a batch
            rows = [products(vector, False) for vector in vectors]
        columns = zip(*rows, strict=True)
        return [
            None if own[0] is None else torch.stack([t for t in own if t is not None])
            for own in columns
        ]
