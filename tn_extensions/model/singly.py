"""Per-sample gradients by running the model on single data, for any parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from tn_extensions.compiler.budget import current_budget
from tn_extensions.errors import describe
from tn_extensions.layers.attributes import attributes_kept


def sample_gradients(
    owner: str,
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Any,
    vector: Tensor,
) -> Iterator[dict[str, Tensor]]:
    """Backpropagate a vector to the parameters, for each datum separately.

    The model runs on single data: on many at once with :mod:`torch.func`, or on one
    after another if a function cannot be transformed.

    Args:
        owner: Name of the caller, for errors.
        model: The model.
        parameters: The parameters, by name.
        x: Its input, whose tensors have a first axis of data.
        vector: Vector, shaped like the outputs, ``[R, ...]``; the rows of a datum are
            adjacent.

    Yields:
        Gradients ``[n, *shape]`` by name, of as many data as the memory budget allows.
        Chunks are in the order of the data.

    Raises:
        NotImplementedError: If the model draws random numbers.
    """
    leaves, structure = tree_flatten(x)
    positions = [i for i, leaf in enumerate(leaves) if has_data(leaf)]
    num_data = len(leaves[positions[0]])
    if not num_data:
        return
    values = {name: p.detach() for name, p in parameters.items()}
    by_datum = vector.unflatten(0, (num_data, -1))
    # memory for the gradients of a datum and their squares
    each = 2 * sum(p.numel() * max(4, p.element_size()) for p in values.values())
    step = max(1, current_budget() // each)

    def of_datum(sample: list[Tensor], cotangent: Tensor) -> dict[str, Tensor]:
        own = list(leaves)
        for position, tensor in zip(positions, sample, strict=True):
            own[position] = tensor.unsqueeze(0)
        single = tree_unflatten(own, structure)

        def output(parameters: dict[str, Tensor]) -> Tensor:
            with torch.compiler.set_stance("force_eager"):
                found = functional_call(model, parameters, (single,))
            return found.to(torch.promote_types(found.dtype, torch.float32))

        transposed = vjp(output, values)[1]
        (gradients,) = transposed(cotangent)
        return gradients

    is_batched = True
    start = 0
    while start < num_data:
        chunk = slice(start, start + step)
        samples = [leaves[position][chunk] for position in positions]
        found = None
        if is_batched:
            try:
                with attributes_kept(model.modules()):
                    found = vmap(of_datum)(samples, by_datum[chunk])
            except RuntimeError as error:
                _check_draws_nothing(owner, parameters, error)
                # running on one datum after another takes no more memory
                is_batched = False
        if found is None:
            each_sample = zip(*samples, by_datum[chunk], strict=True)
            with attributes_kept(model.modules()):
                single = [of_datum([*sample], g) for *sample, g in each_sample]
            found = {
                name: torch.stack([own[name] for own in single]) for name in values
            }
        yield found
        start = chunk.stop


def _check_draws_nothing(
    owner: str, parameters: Mapping[str, Tensor], error: RuntimeError
) -> None:
    # torch has no class for this error
    if "random" in str(error):
        argument = f"parameters {', '.join(parameters)}"
        rule = "be used only in linear or convolution if the model draws random numbers"
        remedy = "Call model.eval(), or pass other parameters as params"
        message = describe(owner, argument, rule, "other uses", remedy)
        raise NotImplementedError(message) from error


def has_data(leaf: Any) -> bool:
    """Tell whether a part of an input is a tensor with a first axis of data."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0
