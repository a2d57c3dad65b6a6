"""Samplers: choose the slices of an axis to keep, and their scales.

A draw keeps slice ``j`` with probability ``p_j`` and scales it by ``1 / p_j``. So the
sum over the kept slices equals the sum over all slices in expectation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tn_extensions.errors import describe

Sampler = Literal["bernoulli", "norm", "fixed"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)


@dataclass(frozen=True)
class Draw:
    """The slices of an axis that are kept.

    Args:
        indices: Their positions in ascending order, ``[M]``.
        scale: Factor of all slices.
        weights: Additional factor of each slice, ``[M]`` in float64; None if all are
            one.
    """

    indices: Tensor
    scale: float = 1.0
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def factors(self) -> Tensor:
        """The factor ``1 / p_j`` of each slice, ``[M]`` in float64."""
        ones = self.indices.new_ones(len(self), dtype=torch.float64)
        return self.scale * (ones if self.weights is None else self.weights)


def check_sampler(owner: str, sampler: object, generator: object) -> None:
    """Check the arguments ``sampler`` and ``generator``.

    Args:
        owner: The caller, for messages.
        sampler: The sampler.
        generator: The source of random numbers.

    Raises:
        TypeError: If the generator is of the wrong kind.
        ValueError: If there is no such sampler.
    """
    if sampler not in SAMPLERS:
        rule = f"be one of {', '.join(map(repr, SAMPLERS))}"
        raise ValueError(describe(owner, "sampler", rule, repr(sampler)))
    if generator is not None and not isinstance(generator, torch.Generator):
        rule, kind = "be a torch.Generator or None", type(generator).__name__
        raise TypeError(describe(owner, "generator", rule, kind))


def check_keep(owner: str, argument: str, keep: object) -> None:
    """Check the share of values to keep.

    Args:
        owner: The caller, for messages.
        argument: Its argument, for messages.
        keep: The share.

    Raises:
        TypeError: If the share is not a number.
        ValueError: If the share is outside of ``(0, 1]``.
    """
    if isinstance(keep, bool) or not isinstance(keep, (int, float)):
        kind = type(keep).__name__
        raise TypeError(describe(owner, argument, "be a number", kind))
    if not 0 < keep <= 1:
        raise ValueError(describe(owner, argument, "lie in (0, 1]", keep))


def share_of_samples(owner: str, keep: Mapping[str, float] | None) -> float:
    """Check the shares to keep of a quantity that only samples can estimate.

    Args:
        owner: The caller, for messages.
        keep: Share by index, of which ``"n"`` is the only one possible.

    Returns:
        The share of samples to keep.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If another index is named, or the share is outside of ``(0, 1]``.
    """
    if keep is None:
        return 1.0
    if not isinstance(keep, Mapping):
        rule, kind = "map 'n' to a share", type(keep).__name__
        raise TypeError(describe(owner, "keep", rule, kind))
    for index, share in keep.items():
        if index != "n":
            rule = "name no index but 'n'"
            raise ValueError(describe(owner, "keep", rule, repr(index)))
        check_keep(owner, "keep['n']", share)
    return keep.get("n", 1.0)


def draw(
    size: int,
    keep: float,
    sampler: Sampler = "bernoulli",
    generator: torch.Generator | None = None,
    norms: Tensor | None = None,
) -> Draw:
    """Draw slices of an axis such that ``E[sum_j z_j a_j] = sum_j a_j``.

    ``z_j`` is ``1 / p_j`` if slice ``j`` is kept, and zero otherwise. If slices are
    drawn independently (``"bernoulli"``, ``"norm"``), the variance is ``sum_j (1 / p_j
    - 1) a_j^2``.

    Args:
        size: Number of slices.
        keep: Share of the slices to keep, in expectation.
        sampler: ``"bernoulli"`` keeps each slice with probability ``keep``; ``"norm"``
            uses :func:`proportional` probabilities; ``"fixed"`` keeps ``max(1,
            round(keep * size))`` slices, drawn uniformly without replacement. The first
            two may keep none; the estimate is zero then.
        generator: Source of random numbers (default: torch's CPU generator, so that
            checkpointing, which restores its state, repeats a draw).
        norms: Norms of the slices, ``[size]``; required by ``"norm"``.

    Returns:
        The draw, on the generator's device.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``keep`` is outside of ``(0, 1]``, there is no such sampler, or
            norms are missing or have another shape.

    Reference: Adelman et al., "Faster neural network training with approximate tensor
    operations", NeurIPS 2021.
    """
    check_sampler("draw", sampler, generator)
    check_keep("draw", "keep", keep)
    device = torch.device("cpu") if generator is None else generator.device
    if sampler == "fixed":
        count = min(size, max(1, round(keep * size)))
        order = torch.randperm(size, generator=generator, device=device)
        return Draw(order[:count].sort().values, size / max(count, 1))
    # in double precision, since float32 is too coarse for small probabilities
    chance = torch.rand(size, generator=generator, device=device, dtype=torch.float64)
    if sampler == "bernoulli":
        return Draw((chance < keep).nonzero().flatten(), 1 / keep)
    if norms is None or tuple(norms.shape) != (size,):
        got = "none" if norms is None else list(norms.shape)
        raise ValueError(describe("draw", "norms", f"have shape [{size}]", got))
    probabilities = proportional(norms, keep).to(device)
    indices = (chance < probabilities).nonzero().flatten()
    return Draw(indices, 1.0, 1 / probabilities[indices])


def proportional(norms: Tensor, keep: float) -> Tensor:
    """Compute probabilities ``p_j = min(1, c norm_j)`` that sum to ``keep * size``.

    Slices of norm zero have probability zero, since they contribute nothing. If no more
    than ``keep * size`` others are left, their probabilities are one. If all norms are
    zero, or some are not finite, all probabilities equal ``keep``.

    Args:
        norms: Non-negative norms, ``[size]``.
        keep: Share of slices to keep.

    Returns:
        Probabilities, ``[size]`` in float64.
    """
    norms = norms.to(torch.float64)
    size, budget = len(norms), keep * len(norms)
    if not size or not bool(norms.isfinite().all()) or not bool(norms.any()):
        return torch.full_like(norms, keep)
    norms = norms / norms.max()  # so that sums neither overflow nor underflow
    if int(norms.count_nonzero()) <= budget:
        return (norms > 0).to(norms.dtype)
    ordered = norms.sort(descending=True).values
    rest = ordered.flip(0).cumsum(0).flip(0)  # of all but the m largest
    room = budget - torch.arange(size, device=norms.device, dtype=norms.dtype)
    # with the m largest capped, c = room / rest; find the first m that caps no other
    capped = (room * ordered > rest).int().argmin()
    return (room[capped] * (norms / rest[capped])).clamp(max=1)
