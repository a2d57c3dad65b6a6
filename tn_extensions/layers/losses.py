"""Vectors in the space of a model's outputs whose outer products make a Fisher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad

from tn_extensions.errors import describe
from tn_extensions.layers.host import holds

OPTIONS = {
    nn.CrossEntropyLoss: ("weight", "ignore_index", "label_smoothing"),
    nn.BCEWithLogitsLoss: ("weight", "pos_weight"),
}
"""Arguments of losses beside the reduction that curvlinops does not know of."""

LIKELIHOODS = (nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss)
"""Losses that are negative logarithms of likelihoods, to some scale."""


def options(loss: Any) -> dict[str, Any]:
    """Values of a loss's :data:`OPTIONS`."""
    return {name: getattr(loss, name) for name in OPTIONS.get(type(loss), ())}


def num_terms(loss: Any, y: Tensor) -> int:
    """Count the loss terms that a batch of targets has."""
    if not isinstance(loss, nn.CrossEntropyLoss):
        return prod(y.shape[:-1])
    return y.numel() // y.shape[1] if _are_probabilities(y) else y.numel()


def terms_per_datum(
    owner: str, loss: Any, targets: Iterable[Tensor], num_data: int
) -> int:
    """Count the loss terms that each datum has.

    Args:
        owner: Whom errors name.
        loss: The loss.
        targets: Those of each batch.
        num_data: Number of data in all batches.

    Raises:
        ValueError: If some data have more than others.
    """
    terms = sum(num_terms(loss, y) for y in targets)
    each, rest = divmod(terms, num_data)
    if rest:
        rule = f"have equally many loss terms for each of {num_data} data"
        remedy = "Unsqueeze outputs and targets [N] of a regression to [N, 1]"
        message = describe(owner, "targets", rule, f"{terms} in all", remedy)
        raise ValueError(message)
    return each


def in_rows(loss: Any, output: Tensor, y: Tensor) -> tuple[Any, Tensor, Tensor]:
    """Rearrange outputs and targets so that each loss term has a row.

    Classes of a cross entropy are on the second axis, the ``C`` outputs that a term of
    another loss takes on the last one, as in curvlinops.

    Args:
        loss: The loss.
        output: Outputs, ``[N, C, ...]`` or ``[N, ..., C]``. Those of fewer than two
            axes have no rows, and are left as they are.
        y: Targets, shaped as the outputs; or classes ``[N, ...]`` of a cross entropy.

    Returns:
        The loss, whose weights of outputs fit the rows; outputs ``[R, C]``; targets
        ``[R, C]`` or ``[R]``.

    Raises:
        ValueError: If weights do not fit the outputs, or probabilities are given where
            a class is ignored, which torch refuses.
    """
    if output.dim() < 2:
        return loss, output, y
    if isinstance(loss, nn.CrossEntropyLoss):
        if _are_probabilities(y):
            if loss.ignore_index >= 0:
                rule, owner = (
                    "be classes where an index is ignored",
                    type(loss).__name__,
                )
                raise ValueError(describe(owner, "targets", rule, "probabilities"))
            y = y.movedim(1, -1).flatten(end_dim=-2)
        else:
            y = y.flatten()
        return loss, output.movedim(1, -1).flatten(end_dim=-2), y
    if isinstance(loss, nn.BCEWithLogitsLoss):
        names = OPTIONS[nn.BCEWithLogitsLoss]
        weights = {name: _weight_of_rows(loss, name, output.shape) for name in names}
        loss = type(loss)(reduction=loss.reduction, **weights)
    rows = (
        each.flatten(end_dim=-2) if each.dim() > 1 else each for each in (output, y)
    )
    return loss, *rows


def _are_probabilities(y: Tensor) -> bool:
    """Tell whether targets of a cross entropy are probabilities of classes."""
    return y.is_floating_point() and y.dim() > 1


def _weight_of_rows(loss: Any, name: str, shape: torch.Size) -> Tensor | None:
    weight: Tensor | None = getattr(loss, name)
    if weight is None:
        return None
    try:
        expanded = weight.expand(shape)
    except RuntimeError as error:
        rule, found = f"broadcast to outputs of shape {list(shape)}", list(weight.shape)
        owner = type(loss).__name__
        raise ValueError(describe(owner, name, rule, f"shape {found}")) from error
    # along the last axis, weights fit rows as they fit outputs
    return expanded.flatten(end_dim=-2) if weight.dim() > 1 else weight


def plain(loss: Any) -> Any:
    """The loss without options, whose Hessian times :func:`scale` squared is its own.

    Hessians depend on targets by the weights of rows or outputs only.
    """
    return type(loss)(reduction=loss.reduction)


def scale(loss: Any, output: Tensor, y: Tensor) -> Tensor | None:
    """Compute the root of rows' or outputs' weights relative to those of a plain loss.

    Cross entropy: classes ``c`` of weights ``w`` and targets ``y'`` after smoothing
    give a row the weight ``sum_c w_c y'_c``, zero where the target is ignored. torch's
    mean divides by the sum of the targets' own weights if these are classes, and by the
    number of rows if they are probabilities. Binary cross entropy: an output has the
    weight ``w (1 - y + w' y)``, ``w'`` being that of positives.

    Args:
        loss: The loss.
        output: Outputs, ``[R, C]``.
        y: Targets; of a cross entropy, classes ``[R]`` or their probabilities ``[R,
            C]``.

    Returns:
        The roots, ``[R, 1]`` or ``[R, C]``. ``None``: all are one.
    """
    if isinstance(loss, nn.BCEWithLogitsLoss):
        found: Tensor | None = loss.weight
        if loss.pos_weight is not None:
            positive = 1 - y + loss.pos_weight * y
            found = positive if found is None else found * positive
        return None if found is None else found.sqrt()
    if not isinstance(loss, nn.CrossEntropyLoss):
        return None
    smoothing = loss.label_smoothing
    if _are_probabilities(y):
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        weight = y.new_ones(y.shape[1]) if loss.weight is None else loss.weight.to(y)
        smoothed = (1 - smoothing) * y + smoothing / y.shape[1]
        return (smoothed @ weight).sqrt().unsqueeze(1)
    kept = y != loss.ignore_index
    if loss.weight is None and holds(kept.all()):
        return None
    weight = output.new_ones(output.shape[1]) if loss.weight is None else loss.weight
    own = weight[y.where(kept, 0).long()] * kept
    rows = (1 - smoothing) * own + smoothing * weight.mean() * kept
    if loss.reduction == "mean":
        # a batch of ignored rows only has a loss of nan; it has no curvature
        rows = rows * (len(y) / own.sum()) if holds(kept.any()) else rows
    return rows.sqrt().unsqueeze(1)


def gradient(loss: nn.Module, output: Tensor, y: Tensor) -> Tensor:
    """Gradient of a loss with respect to the outputs, ``[R, C]``.

    Means over classes, too (mean squared error, binary cross entropy), are scaled so
    that outer products have the scale of the mean over rows.
    """
    leaf = output.detach().requires_grad_()
    (vectors,) = grad(loss(leaf, y), leaf)
    over_classes = isinstance(loss, (nn.MSELoss, nn.BCEWithLogitsLoss))
    if over_classes and loss.reduction == "mean":
        return vectors * sqrt(output.shape[1])
    return vectors


def hessian_columns(loss: Any, output: Tensor) -> Iterator[Tensor]:
    """Columns of a root of a plain loss's Hessian by the outputs, ``[R, C]`` each.

    Cross entropy: column ``c`` is ``sqrt(p_c) (e_c - p)`` of the probabilities ``p``;
    of others, whose Hessian is diagonal, it is a multiple of ``e_c``.
    """
    output = output.detach()
    mean = torch.zeros_like(output)
    if isinstance(loss, nn.CrossEntropyLoss):
        mean = output.softmax(1)
        root = mean.sqrt()
    elif isinstance(loss, nn.BCEWithLogitsLoss):
        root = (output.sigmoid() * output.neg().sigmoid()).sqrt()
    else:
        root = torch.full_like(output, sqrt(2))
    if loss.reduction == "mean":
        over_classes = not isinstance(loss, nn.CrossEntropyLoss)
        root = root / (len(output) * (sqrt(output.shape[1]) if over_classes else 1))
    for c in range(output.shape[1]):
        own = root[:, c]
        column = -own.unsqueeze(1) * mean
        column[:, c] += own
        yield column


def draw(loss: Any, output: Tensor, generator: torch.Generator) -> Tensor:
    """Targets drawn from what the model predicts, the loss being its likelihood.

    Args:
        loss: The loss, one of :data:`LIKELIHOODS`.
        output: Outputs, ``[R, C]``.
        generator: The generator.

    Returns:
        Classes ``[R]`` of a cross entropy, otherwise targets ``[R, C]``.
    """
    output = output.detach()
    if isinstance(loss, nn.CrossEntropyLoss):
        return output.softmax(1).multinomial(1, generator=generator).squeeze(1)
    if isinstance(loss, nn.BCEWithLogitsLoss):
        return output.sigmoid().bernoulli(generator=generator)
    return output + sqrt(0.5) * torch.empty_like(output).normal_(generator=generator)


def scaled(vectors: Iterator[Tensor], scale: Tensor | None) -> Iterator[Tensor]:
    """Vectors times a number for each row or output."""
    for vector in vectors:
        yield vector if scale is None else vector * scale.to(vector.dtype)
