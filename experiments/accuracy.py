"""Errors of KFAC's input-based factors against float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.contenders import ConvModule, Quantity, unfold_input

FRAME = 1e4


@dataclass(frozen=True)
class Reference:
    """A quantity in float64.

    Args:
        value: The quantity, ``[G, D, D]``, or ``[N, G, D]`` for patch means.
        scale: What its entries' errors are measured against, broadcasts to the same
            shape. See :func:`reference`.
    """

    value: Tensor
    scale: Tensor


def framed(x: Tensor) -> Tensor:
    """A copy of the input whose border, one pixel wide, is 1e4 times as large.

    A factor that is computed as a whole minus the border loses all digits of the
    interior on such an input.
    """
    interior = (slice(None), slice(None), *(slice(1, -1) for _ in x.shape[2:]))
    result = x * FRAME
    result[interior] = x[interior]
    return result


def reference(quantity: Quantity, module: ConvModule, x: Tensor) -> Reference:
    """Compute a quantity in float64 by unfolding one sample at a time.

    The scale of a patch entry is its root mean square over the batch: the norm over
    positions for KFAC-expand, and the norm divided by their number, which is what a
    mean of random signs amounts to, else. A factor's entry has the product of the
    scales of its row and column. For KFAC-expand this is the largest that the entry
    could be (Cauchy-Schwarz). Unlike the entries, scales are never small by accident.

    Args:
        quantity: Which one.
        module: The convolution.
        x: Its input, ``[N, C_in, I1, ...]``.

    Returns:
        The quantity and the scale of its entries.
    """
    means = []
    value = squares = torch.zeros((), dtype=torch.float64, device=x.device)
    for sample in x.double().split(1):
        u = unfold_input(module, sample).unflatten(1, (module.groups, -1))[0]
        norm = u.norm(dim=-1)
        if quantity != "expand":
            norm = norm / u.shape[-1]
            u = u.mean(-1, keepdim=True)
            means.append(u[..., 0])
        squares = squares + norm.pow(2)
        if quantity != "mean":
            value = value + u @ u.mT
    scale = (squares / len(x)).sqrt()
    if quantity == "mean":
        return Reference(torch.stack(means), scale)
    return Reference(value / len(x), scale[:, :, None] * scale[:, None, :])


def relative_error(result: Tensor, exact: Reference) -> float:
    """Largest error of an entry, relative to its scale.

    The scale makes errors comparable between entries that see a large border and
    entries that do not.

    Args:
        result: The quantity to be judged, with or without the dimension of groups.
        exact: The reference.

    Returns:
        The error; infinite if not finite, or if an entry that must be zero is not.
    """
    error = result.double().reshape(exact.value.shape).sub(exact.value).abs_()
    # 0/0 is an entry that is rightly zero
    worst = float(torch.where(error == 0, error, error / exact.scale).max())
    return math.inf if math.isnan(worst) else worst
