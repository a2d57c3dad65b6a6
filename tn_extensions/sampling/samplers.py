"""Samplers: which slices of an axis are kept, and by what they are scaled.

A draw keeps slice ``j`` with probability ``p_j`` and scales it by ``1 / p_j``: a sum
over the kept slices has the expectation of the sum over all of them.
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
    """Slices of an axis that were kept.

    Args:
        indices: Their positions, ascending, ``[M]``.
        scale: Factor of all of them.
        weights: Further factors of each, ``[M]`` in float64; None if all are one.
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
    """Refuse what is no sampler, or no source of random numbers.

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
    """Refuse what is no probability of keeping something.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is outside of ``(0, 1]``.
    """
    if isinstance(keep, bool) or not isinstance(keep, (int, float)):
        kind = type(keep).__name__
        raise TypeError(describe(owner, argument, "be a number", kind))
    if not 0 < keep <= 1:
        raise ValueError(describe(owner, argument, "lie in (0, 1]", keep))


def share_of_samples(owner: str, keep: Mapping[str, float] | None) -> float:
    """The share of ``"n"``, the one index of what can be estimated by samples alone.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If another index is named, or the share lies outside of ``(0, 1]``.
    """
    if keep is None:
        return 1.0
    if not isinstance(keep, Mapping):
        rule, kind = "map 'n' to a share", type(keep).__name__
        raise TypeError(describe(owner, "keep", rule, kind))
    for index, share in keep.items():
        if index != "n":
            rule = "name 'n' alone, the index that copies share"
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

    ``z_j`` is ``1 / p_j`` if slice ``j`` is kept, else zero. With independent slices
    (``"bernoulli"``, ``"norm"``), the variance is ``sum_j (1 / p_j - 1) a_j^2``.

    Args:
        size: Number of slices.
        keep: Share of them to keep, in expectation.
        sampler: ``"bernoulli"`` keeps each with ``p_j = keep``; ``"norm"`` with
            :func:`proportional` probabilities; ``"fixed"`` keeps ``max(1, round(keep *
            size))`` of them, each equally likely, without replacement. The first two
            may keep none, which is an estimate of zero.
        generator: Source of random numbers. Default: torch's own, of the CPU, so that
            whatever replays its state (checkpointing) draws the same.
        norms: For ``"norm"``, ``[size]``.

    Returns:
        The draw, on the generator's device.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``keep`` is no probability, there is no such sampler, or norms
            are missing or of another number.

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
    # in double precision, as p is to be met to more digits than there are draws
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
    """Probabilities ``p_j = min(1, c norm_j)`` that add up to ``keep * size``.

    Slices without norm have probability zero, since they add nothing. If that leaves
    no more than ``keep * size``, all others have one. Norms that tell nothing, as all
    are zero or some are not finite, lead to equal probabilities.

    Args:
        norms: Non-negative, ``[size]``.
        keep: Share of slices to keep.

    Returns:
        Probabilities, ``[size]`` in float64.
    """
    norms = norms.to(torch.float64)
    size, budget = len(norms), keep * len(norms)
    if not size or not bool(norms.isfinite().all()) or not bool(norms.any()):
        return torch.full_like(norms, keep)
    norms = norms / norms.max()  # sums neither overflow nor underflow
    if int(norms.count_nonzero()) <= budget:
        return (norms > 0).to(norms.dtype)
    ordered = norms.sort(descending=True).values
    rest = ordered.flip(0).cumsum(0).flip(0)  # of all but the m largest
    room = budget - torch.arange(size, device=norms.device, dtype=norms.dtype)
    # with the m largest capped, c = room / rest: the first m that caps no other
    capped = (room * ordered > rest).int().argmin()
    return (room[capped] * (norms / rest[capped])).clamp(max=1)
