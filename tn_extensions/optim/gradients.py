"""Gradients before and after: whether they are finite, and written back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from tn_extensions.layers.host import holds


def not_finite(
    gradients: Mapping[str, Tensor], all_agree: Callable[[list[bool]], list[bool]]
) -> list[str]:
    """Names of gradients with an infinite entry or nan.

    Args:
        gradients: The gradients, or this process's parts.
        all_agree: Finds which conditions hold in all processes.
    """
    # a sum is finite only if all of its terms are; there is one answer for all
    sums = [own.sum(dtype=_summable(own)).double() for own in gradients.values()]
    is_finite = torch.stack(sums).isfinite()
    if all_agree([holds(is_finite.all())]) == [True]:
        return []
    both = zip(gradients, all_agree(is_finite.tolist()), strict=True)
    return [name for name, is_fine in both if not is_fine]


def replace_gradients(
    pairs: Iterable[tuple[Tensor, Tensor]],
    clip_and_lr: tuple[float, float] | None,
    sum_over_processes: Callable[[Tensor], Tensor],
) -> Tensor | None:
    """Write preconditioned gradients over the former ones, scaled if that is asked.

    Each is written as it comes, so that not all of them are held twice.

    Args:
        pairs: Former gradients and the others.
        clip_and_lr: Bound on the squared learning rate times the sum of products of
            both, and the learning rate. ``None``: no bound.
        sum_over_processes: Adds the sums of processes that have parts of gradients.

    Returns:
        The scale. ``None``: not all are finite, and what has been written is of no use.
    """
    written, products = [], []
    for own, new in pairs:
        pair = (each.flatten().to(_summable(own)) for each in (own, new))
        products.append(torch.dot(*pair))
        written.append(own.copy_(new))
    total = sum_over_processes(torch.stack(products).sum())
    if not holds(total.isfinite()):
        return None
    if clip_and_lr is None:
        return torch.ones_like(total)
    clip, lr = clip_and_lr
    scale = (clip / (total.abs() * lr**2)).sqrt().clamp(max=1)
    for own in written:  # by one, rather than asking whether it is less
        own.mul_(scale)
    return scale


def _summable(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
