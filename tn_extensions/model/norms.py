"""Norms of per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from tn_extensions.errors import describe
from tn_extensions.layers.hooks import unwrapped
from tn_extensions.layers.module import Pairs
from tn_extensions.layers.squares import squared_norms
from tn_extensions.model.parameters import (
    Params,
    check_independent,
    trained_parameters,
)
from tn_extensions.model.passes import batch_of
from tn_extensions.model.singly import sample_gradients

_OWNER = "per_sample_grad_norms"

Loss = Callable[[Tensor, Any], Tensor]
Reduction = Literal["mean", "sum"]


@overload
def per_sample_grad_norms(
    model: nn.Module,
    loss: Loss,
    x: Any,
    y: Any,
    *,
    params: Params = None,
    reduction: Reduction | None = None,
    per_parameter: Literal[False] = False,
) -> Tensor: ...


@overload
def per_sample_grad_norms(
    model: nn.Module,
    loss: Loss,
    x: Any,
    y: Any,
    *,
    params: Params = None,
    reduction: Reduction | None = None,
    per_parameter: Literal[True],
) -> dict[str, Tensor]: ...


def per_sample_grad_norms(
    model: nn.Module,
    loss: Loss,
    x: Any,
    y: Any,
    *,
    params: Params = None,
    reduction: Reduction | None = None,
    per_parameter: bool = False,
) -> Tensor | dict[str, Tensor]:
    """Compute the norm of each datum's gradient: ``||g_n||``, not squared.

    The gradient of ``loss(model(x), y)`` is the *mean* of all ``g_n`` if the loss is a
    mean over data, and their *sum* otherwise. Without class weights, ``g_n`` is the
    gradient of the loss of datum ``n`` alone, for any size of the batch. (If the loss
    is a mean, BackPACK's ``BatchL2Grad`` computes squared norms of ``g_n / N``.)

    It takes one forward and one backward pass. Gradients of kernels and biases of
    ``linear`` and convolutions are formed for a few data at a time, or not at all. For
    other parameters (of a ``LayerNorm``, of an ``Embedding``, or from which a kernel is
    computed), :mod:`torch.func` runs the model on single data again.

    Args:
        model: The model. It must process each datum independently.
        loss: Function of the model's output for the batch, and of ``y``. If its value
            has axes (``reduction="none"``), it is summed.
        x: Input, ``[N, ...]``, or a container of tensors with this first axis.
        y: Targets, the second argument of the loss.
        params: Parameters or their names. ``None``: all. Frozen ones are left out.
        reduction: ``"mean"`` or ``"sum"``, if ``loss`` has no attribute of this name.
        per_parameter: Whether to return norms for each parameter separately.

    Returns:
        Norms, ``[N]``, of float32 or wider; a dictionary of them if per parameter.

    Raises:
        TypeError: If an argument is of the wrong kind, or the output is not a tensor.
        ValueError: If the reduction is not known, a parameter is not the model's or is
            not used, or data depend on each other.
        NotImplementedError: If parameters other than kernels and biases are in a model
            that draws random numbers.

    Reference: Goodfellow, "Efficient per-example gradient computations", 2015.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    >>> per_sample_grad_norms(layer, lambda output, y: output.sum(1), x, None)
    tensor([5., 1.])
    """
    model = unwrapped(model)
    parameters = trained_parameters(_OWNER, model, params)
    _check_reduction(reduction)
    check_independent(_OWNER, model)
    squares: dict[str, Tensor] = {}

    def on_pairs(name: str, pairs: Pairs) -> None:
        if name in batch.observed:
            squares[name] = squared_norms(pairs, batch.observed[name])

    with batch_of(_OWNER, model, parameters, x) as batch:
        vector = _gradient(loss, batch.output, y, reduction, batch.num_data)
        batch.sort_rows()
        for _ in batch.uses.backward(batch.output, [vector], on_pairs):
            pass
    own = {name: parameters[name] for name in batch.others}
    if own:
        parts: dict[str, list[Tensor]] = {name: [] for name in own}
        for chunk in sample_gradients(_OWNER, model, own, x, vector):
            for name, g in chunk.items():
                wide = g.flatten(1).to(torch.promote_types(g.dtype, torch.float32))
                parts[name].append(wide.square().sum(1))
        squares |= {name: torch.cat(each) for name, each in parts.items() if each}
    zeros = vector.new_zeros(batch.num_data)
    by_name = {name: squares.get(name, zeros) for name in parameters}
    if per_parameter:
        return {name: each.sqrt() for name, each in by_name.items()}
    return torch.stack([each.to(zeros) for each in by_name.values()]).sum(0).sqrt()


def _check_reduction(reduction: Any) -> None:
    if reduction not in (None, "mean", "sum"):
        rule = "be 'mean' or 'sum'"
        raise ValueError(describe(_OWNER, "reduction", rule, repr(reduction)))


def _gradient(
    loss: Loss, output: Tensor, y: Any, reduction: Reduction | None, num_data: int
) -> Tensor:
    """Compute the gradient of the sum of all data's losses by the outputs."""
    leaf = output.detach().requires_grad_()
    value = loss(leaf, y)
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise TypeError(describe(_OWNER, "loss", "return a tensor", kind))
    if value.dim():
        return torch.autograd.grad(value.sum(), leaf)[0]
    known = reduction or getattr(loss, "reduction", None)
    if known not in ("mean", "sum"):
        rule = "have a reduction, or return a value for each datum"
        remedy = "Pass reduction='mean' or 'sum'"
        found = f"a single number from {getattr(loss, '__name__', type(loss).__name__)}"
        raise ValueError(describe(_OWNER, "loss", rule, found, remedy))
    (vector,) = torch.autograd.grad(value, leaf)
    return vector * num_data if known == "mean" else vector
