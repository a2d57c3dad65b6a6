"""Vectors in the space of a model's outputs whose outer products make a Fisher."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Any

import torch
from curvlinops.kfac_utils import loss_hessian_matrix_sqrt
from torch import Tensor, nn
from torch.autograd import grad


def is_plain(loss: nn.Module) -> bool:
    """Whether every row of a batch has the same weight in a loss."""
    return not isinstance(loss, nn.CrossEntropyLoss) or (
        loss.weight is None
        and loss.ignore_index == nn.CrossEntropyLoss().ignore_index
        and loss.label_smoothing == 0
    )


def plain(loss: Any) -> nn.Module:
    """The loss with equal weights, whose Hessian times :func:`row_scale` is the loss's.

    A cross entropy's Hessian does not depend on the targets, but for the weight and
    whether they are ignored; smoothing changes nothing.
    """
    return loss if is_plain(loss) else nn.CrossEntropyLoss(reduction=loss.reduction)


def row_scale(loss: Any, y: Tensor) -> Tensor | None:
    """Root of the rows' weights relative to those of a plain loss.

    ``sqrt(w)`` of a sum, ``sqrt(w R / sum w)`` of a mean over ``R`` rows; zero where
    the target is ignored. ``None``: all one.

    Args:
        loss: The loss.
        y: Targets, ``[R]`` classes or ``[R, C]`` probabilities.
    """
    ignores = isinstance(loss, nn.CrossEntropyLoss) and not y.is_floating_point()
    if is_plain(loss) and not (ignores and bool((y == loss.ignore_index).any())):
        return None
    if not ignores:
        weight = torch.ones_like(y[0]) if loss.weight is None else loss.weight
        # the Hessian of sum_c w_c y_c log p_c has the weight of all classes; torch's
        # mean divides by the number of rows here
        return (y * weight).sum(1).sqrt()
    kept = y != loss.ignore_index
    if loss.weight is None:
        weights = kept.to(torch.get_default_dtype())
    else:
        weights = loss.weight[y.where(kept, 0)] * kept
    if loss.reduction == "mean":
        weights = weights * (len(y) / weights.sum().clamp(min=1e-30))
    return weights.sqrt()


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


def hessian_columns(loss: Any, output: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Columns of a root of the Hessian with respect to the outputs, ``[R, C]`` each."""
    rows = zip(output.detach().split(1), y.split(1), strict=True)
    roots = torch.stack([loss_hessian_matrix_sqrt(o, t, loss) for o, t in rows])
    if loss.reduction == "mean":
        roots /= len(output)
    yield from roots.unbind(2)


def scaled(vectors: Iterator[Tensor], scale: Tensor | None) -> Iterator[Tensor]:
    """Vectors times a number for each row."""
    for vector in vectors:
        yield vector if scale is None else vector * scale.to(vector.dtype).unsqueeze(1)
