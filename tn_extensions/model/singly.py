"""Gradients of single data, for parameters of any layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_leaves, tree_map

from tn_extensions.compiler.budget import current_budget
from tn_extensions.errors import describe


def sample_gradients(
    owner: str,
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Any,
    vector: Tensor,
) -> Iterator[dict[str, Tensor]]:
    """Backpropagate a vector to the parameters, for each datum on its own.

    The model is run on single data, by :mod:`torch.func`.

    Args:
        owner: Whom errors name.
        model: The model.
        parameters: The parameters, by name.
        x: Its input, whose tensors have a first axis of data.
        vector: Shaped as the outputs, ``[R, ...]``, the rows of a datum next to each
            other.

    Yields:
        By name ``[n, *shape]``, of so many data at a time as the memory budget
        allows; in all, of all data in order.

    Raises:
        NotImplementedError: If :mod:`torch.func` cannot run the model on single data.
    """
    num_data = next(len(t) for t in tree_leaves(x) if isinstance(t, Tensor))
    if not num_data:
        return
    values = {name: p.detach() for name, p in parameters.items()}
    by_datum = vector.unflatten(0, (num_data, -1))
    # gradients of a datum, and their squares
    each = 2 * sum(p.numel() * max(4, p.element_size()) for p in values.values())
    step = max(1, current_budget() // each)

    def of_datum(sample: Any, cotangent: Tensor) -> dict[str, Tensor]:
        def output(own: dict[str, Tensor]) -> Tensor:
            single = tree_map(_unsqueezed, sample)
            found = functional_call(model, own, (single,))
            return found.to(torch.promote_types(found.dtype, torch.float32))

        _, transposed = vjp(output, values)
        (gradients,) = transposed(cotangent)
        return gradients

    for start in range(0, num_data, step):
        chunk = slice(start, start + step)
        samples = tree_map(partial(_of_data, chunk), x)
        try:
            yield vmap(of_datum)(samples, by_datum[chunk])
        except RuntimeError as error:
            argument = f"parameters {', '.join(parameters)}"
            rule = (
                "be used in linear or convolution only, or in a model that "
                "torch.func.vmap can run"
            )
            first = str(error).strip().splitlines()[0].rstrip(".")
            remedy = "Leave them out: pass the others as params"
            message = describe(owner, argument, rule, f"an error: {first}", remedy)
            raise NotImplementedError(message) from error


def _of_data(chunk: slice, t: Any) -> Any:
    return t[chunk] if isinstance(t, Tensor) else t


def _unsqueezed(t: Any) -> Any:
    return t.unsqueeze(0) if isinstance(t, Tensor) else t
