"""Column-row sampling on a network: draw slices along indices, narrow the operands."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor

from tn_extensions.compiler import plan
from tn_extensions.compiler.slices import merged, place, select
from tn_extensions.errors import describe
from tn_extensions.network import TensorNetwork
from tn_extensions.sampling.narrowed import indices_of_axes, narrow, samplable
from tn_extensions.sampling.norms import slice_norms
from tn_extensions.sampling.samplers import (
    Draw,
    Sampler,
    check_keep,
    check_sampler,
    draw,
)


@dataclass(frozen=True)
class Sampled:
    """An unbiased estimate of a network, by slices that were drawn.

    Args:
        original: The network that is estimated.
        draws: The kept slices of each sampled index.
    """

    original: TensorNetwork
    draws: Mapping[str, Draw]

    @property
    def network(self) -> TensorNetwork:
        """What is contracted: the network between narrowed operands.

        An index that no pattern carries gets smaller. Others keep their size; operands
        carry the index of its sampled positions, which a plan takes as data.
        """
        return self._narrowed(self._kept)

    @property
    def scale(self) -> float:
        """Factor that all kept slices share."""
        return prod(each.scale for each in self.draws.values())

    @property
    def is_empty(self) -> bool:
        """Whether an index has no slice left; the estimate is zero then."""
        return not all(map(len, self.draws.values()))

    def positions(self, name: str) -> tuple[Tensor | None, ...]:
        """Positions that take part along each axis of an operand; None for all.

        Those of the sampled indices, and those that they meet through a pattern.
        """
        return self._along(name, self._kept | self._met(name))

    def narrow(self, name: str, tensor: Tensor) -> Tensor:
        """The slices of an operand's tensor that take part, all that has to be held."""
        return select(tensor, self.positions(name))

    def run(
        self, tensors: Mapping[str, Tensor], narrowed: Collection[str] = ()
    ) -> Tensor:
        """Evaluate the estimate.

        Args:
            tensors: The operands' tensors, by name.
            narrowed: Names of those that :meth:`narrow` made.

        Returns:
            Tensor of the original network's shape; dropped slices of it are zero.
        """
        kept = {**self._kept}
        for name in narrowed:
            kept |= self._met(name)
        network = self._narrowed(kept)
        like = next(iter(tensors.values()))
        if 0 in network.sizes.values():
            return like.new_zeros(self.original.shape)
        given = {
            name: self._weighted(
                name,
                tensor if name in narrowed else select(tensor, self._along(name, kept)),
                kept,
            )
            for name, tensor in tensors.items()
        }
        for selection in network.selections:
            given[selection.kept] = kept.pop(selection.index)
        with torch.autocast(like.device.type, enabled=False):
            chosen = plan(network, like.dtype, like.device.type)
            result = chosen.run(given, self.scale)
        sizes = self.original.sizes
        places = [merged(axis, sizes, kept) for axis in self.original.output]
        return place(result, places, self.original.shape)

    @cached_property
    def _kept(self) -> dict[str, Tensor]:
        """By index, the values that are kept, if not all are."""
        return {
            index: kept.indices.cpu()
            for index, kept in self.draws.items()
            if len(kept) < self.original.sizes[index]
        }

    def _met(self, name: str) -> dict[str, Tensor]:
        """By index of an operand, the values that meet kept ones in a pattern."""
        sizes = self.original.sizes
        axes = indices_of_axes(self.original, name)
        met = {}
        for pattern in self.original.patterns:
            kept = [index for index in pattern.indices if index in self._kept]
            rest = [index for index in pattern.indices if index not in self.draws]
            if pattern.summed or (len(kept), len(rest)) != (1, 2):
                continue
            for index, other in (rest, rest[::-1]):
                if any(index in axis for axis in axes):
                    given = {
                        kept[0]: self._kept[kept[0]].numpy(),
                        other: np.arange(sizes[other])[:, None],
                    }
                    values = np.unique(pattern.solve(index, given, sizes)[0])
                    met[index] = torch.from_numpy(values[values >= 0])
        return {index: own for index, own in met.items() if len(own) < sizes[index]}

    def _narrowed(self, kept: Mapping[str, Tensor]) -> TensorNetwork:
        counts = tuple((index, len(own)) for index, own in kept.items())
        return narrow(self.original, counts)

    def _along(
        self, name: str, kept: Mapping[str, Tensor]
    ) -> tuple[Tensor | None, ...]:
        """Positions along each axis of an operand, where indices take kept values."""
        axes, sizes = indices_of_axes(self.original, name), self.original.sizes
        return tuple(merged(axis, sizes, kept) for axis in axes)

    def _weighted(
        self, name: str, tensor: Tensor, kept: Mapping[str, Tensor]
    ) -> Tensor:
        """Multiply the slices of an operand that have factors of their own by them.

        They are those of one operand; if it occurs twice, each has their square root.
        """
        factors: dict[str, Tensor] = {}
        for index, drawn in self.draws.items():
            carriers = [o.name for o in self.original.operands if index in o.indices]
            if drawn.weights is not None and carriers[0] == name:
                factors[index] = drawn.weights.cpu().pow(1 / carriers.count(name))
        for number, axis in enumerate(indices_of_axes(self.original, name)):
            if factors.keys() & {*axis}:
                along = torch.ones(1, dtype=torch.float64)
                for index in axis:
                    size = len(kept.get(index, range(self.original.sizes[index])))
                    own = factors.get(index, along.new_ones(size))
                    along = torch.outer(along, own).flatten()
                shape = [-1 if each == number else 1 for each in range(tensor.dim())]
                tensor = tensor * along.to(tensor).reshape(shape)
        return tensor


def sample(
    network: TensorNetwork,
    keep: Mapping[str, float],
    *,
    sampler: Sampler = "bernoulli",
    generator: torch.Generator | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Sampled:
    """Draw slices along indices of a network, and narrow its operands to them.

    With ``z_j = 1 / p_j`` for a kept value ``j`` of an index and zero for others, the
    network's sum over ``j`` becomes that of ``z_j`` times the same: an unbiased
    estimate, smaller in all operands. Several indices are drawn independently. If the
    result keeps an index, its slices are multiplied by ``z_j``.

    Args:
        network: What to estimate, for instance ``quantities.weight_vjp(conv, N)``.
        keep: Share of values to keep, by index. Indices with 1 stay whole.
        sampler: How to draw, see :func:`~tn_extensions.sampling.draw`.
        generator: Source of random numbers. Default: torch's own, of the CPU.
        tensors: For ``sampler="norm"``: operands by name, of whose slices the norms are
            taken; those of ``x`` alone, or of ``x`` and ``g`` for less variance.

    Returns:
        The estimate, to be run on the operands' tensors.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an index cannot be sampled, a share lies outside of ``(0, 1]``,
            there is no such sampler, or tensors are missing or do not fit.

    Reference: Adelman et al., "Faster neural network training with approximate tensor
    operations", NeurIPS 2021; on networks of convolutions: Dangel, "Convolutions and
    More as Einsum", NeurIPS 2024.

    >>> from tn_extensions import Conv, quantities
    >>> conv = Conv.make(4, 8, kernel_size=3, input_size=(32, 32), padding=1)
    >>> network = quantities.weight_vjp(conv, 16)
    >>> estimate = sample(network, {"n": 0.5, "i1": 0.25}, sampler="fixed")
    >>> list(estimate.narrow("x", torch.rand(16, 4, 32, 32)).shape)
    [8, 4, 8, 32]
    """
    if not isinstance(network, TensorNetwork):
        kind = type(network).__name__
        raise TypeError(describe("sample", "network", "be a TensorNetwork", kind))
    if not isinstance(keep, Mapping):
        rule, kind = "map indices to shares", type(keep).__name__
        raise TypeError(describe("sample", "keep", rule, kind))
    check_sampler("sample", sampler, generator)
    possible = samplable(network)
    for index, share in keep.items():
        if index not in possible:
            rule = f"name indices among {', '.join(map(repr, possible))}"
            raise ValueError(describe("sample", "keep", rule, repr(index)))
        check_keep("sample", f"keep[{index!r}]", share)
    tensors = {} if tensors is None else tensors
    _check_tensors(network, tensors)
    active = {index: share for index, share in keep.items() if share < 1}
    norms: dict[str, Tensor | None] = dict.fromkeys(active)
    if sampler == "norm":
        norms = {index: slice_norms(network, index, tensors) for index in active}
    for index, known in norms.items():
        if sampler == "norm" and known is None:
            rule = f"hold operands that meet {index!r}"
            got = ", ".join(map(repr, tensors)) or "none"
            raise ValueError(describe("sample", "tensors", rule, got))
    draws = {
        index: draw(network.sizes[index], share, sampler, generator, norms[index])
        for index, share in active.items()
    }
    return Sampled(network, draws)


def _check_tensors(network: TensorNetwork, tensors: Mapping[str, Tensor]) -> None:
    shapes = {operand.name: operand.shape for operand in network.operands}
    for name, tensor in tensors.items():
        argument = f"tensors[{name!r}]"
        if name not in shapes:
            rule = f"be of an operand, one of {', '.join(map(repr, shapes))}"
            raise ValueError(describe("sample", argument, rule, repr(name)))
        if tuple(tensor.shape) != shapes[name]:
            rule, got = f"have shape {list(shapes[name])}", list(tensor.shape)
            raise ValueError(describe("sample", argument, rule, got))
