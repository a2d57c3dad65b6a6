"""Check gradients, and replace them by preconditioned ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from tn_extensions.layers.host import holds


def not_finite(
    gradients: Mapping[str, Tensor], all_agree: Callable[[list[bool]], list[bool]]
) -> list[str]:
    """Find the gradients with an infinite entry or nan.

    Args:
        gradients: The gradients, or this process's parts.
        all_agree: Function that tells which conditions hold in all processes.

    Returns:
        Their names.
    """
    # a sum is finite only if all of its terms are; test all sums with one transfer
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
    """Overwrite gradients with preconditioned ones, and scale them if they are clipped.

    Each gradient is overwritten as soon as its new value is computed, so that the new
    values need little additional memory.

    Args:
        pairs: Pairs of a gradient and its preconditioned value.
        clip_and_lr: Bound on ``lr^2`` times the inner product of gradients and
            preconditioned gradients, and the learning rate ``lr``. ``None``: no bound.
        sum_over_processes: Function that adds the sums of processes, if each has a part
            of the gradients.

    Returns:
        The scale. ``None`` if a value is not finite; the gradients are useless then.
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
    for own in written:  # also by 1: a comparison would wait for the device
        own.mul_(scale)
    return scale


def _summable(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
