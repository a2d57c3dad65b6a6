"""Vectors in the space of a model's outputs whose outer products make a Fisher."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Any

import torch
from curvlinops.kfac_utils import loss_hessian_matrix_sqrt
from torch import Tensor, nn
from torch.autograd import grad


def plain(loss: Any) -> Any:
    """The loss with equal weights, whose Hessian times :func:`row_scale` is the loss's.

    A cross entropy's Hessian depends on the targets by the weights of rows only.
    """
    if isinstance(loss, nn.CrossEntropyLoss):
        return nn.CrossEntropyLoss(reduction=loss.reduction)
    return loss


def row_scale(loss: Any, output: Tensor, y: Tensor) -> Tensor | None:
    """Root of the rows' weights relative to those of a plain loss.

    Classes ``c`` of weights ``w`` and targets ``y'`` after smoothing give a row the
    weight ``sum_c w_c y'_c``, zero where the target is ignored. torch's mean divides
    by the sum of the targets' own weights.

    Args:
        loss: The loss.
        output: Outputs, ``[R, C]``.
        y: Targets; of a cross entropy, classes ``[R]``.

    Returns:
        The roots, ``[R]``. ``None``: all are one.
    """
    if not isinstance(loss, nn.CrossEntropyLoss):
        return None
    kept = y != loss.ignore_index
    if loss.weight is None and bool(kept.all()):
        return None
    weight = output.new_ones(output.shape[1]) if loss.weight is None else loss.weight
    own = weight[y.where(kept, 0)] * kept
    smoothing = loss.label_smoothing
    rows = (1 - smoothing) * own + smoothing * weight.mean() * kept
    if loss.reduction == "mean":
        # a batch of ignored rows only has a loss of nan; it has no curvature
        rows = rows * (len(y) / own.sum()) if kept.any() else rows
    return rows.sqrt()


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
