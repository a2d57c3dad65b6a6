"""Column-row sampling on a network: draw slices along indices, narrow the operands."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor

from tn_extensions.compiler import plan
from tn_extensions.compiler.tracing import is_traced
from tn_extensions.errors import describe
from tn_extensions.network import TensorNetwork
from tn_extensions.sampling.meetings import reach
from tn_extensions.sampling.narrowed import indices_of_axes, narrow, samplable
from tn_extensions.sampling.norms import slice_norms
from tn_extensions.sampling.positions import merged, place, scaled, select
from tn_extensions.sampling.samplers import (
    Draw,
    Sampler,
    check_keep,
    check_sampler,
    draw,
)
from tn_extensions.sampling.sites import Sites, cheapest


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

        Sampled indices of patterns keep their size, dropped slices are zero; where that
        is less work, :class:`~tn_extensions.sampling.sites.Sites` leaves them out.
        """
        return narrow(self.original, self._counts)

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
        axes = self._axes(name)
        found = {index: self._touched(index) for axis in axes for index in axis}
        part = {index: met for index, met in found.items() if met is not None}
        return tuple(merged(axis, self.original.sizes, part) for axis in axes)

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
        if self.is_empty or not all(map(torch.numel, tensors.values())):
            return next(iter(tensors.values())).new_zeros(self.original.shape)
        like = next(iter(tensors.values()))
        way = None
        if not is_traced(tensors.values()):
            way = cheapest(self.original, self._counts, like.dtype, like.device.type)
        with torch.autocast(like.device.type, enabled=False):
            if way is None:
                result = self._filled(tensors, narrowed)
            else:
                result = self._at_sites(way, tensors, narrowed)
        positions = [
            merged(axis, self.original.sizes, self._kept)
            for axis in self.original.output
        ]
        return place(result, positions, self.original.shape)

    def _filled(
        self, tensors: Mapping[str, Tensor], narrowed: Collection[str]
    ) -> Tensor:
        """Evaluate the narrowed network, with zeros for dropped slices of patterns."""
        arranged = {}
        for name, tensor in tensors.items():
            axes = self._axes(name)
            wanted = [merged(axis, self.original.sizes, self._kept) for axis in axes]
            tensor, has = self._read(name, tensor, name in narrowed, wanted)
            shape = [self._width(axis) for axis in axes]
            has = [
                None if own is None or len(own) == size else own
                for own, size in zip(has, shape, strict=True)
            ]
            arranged[name] = place(tensor, has, shape)
        like = next(iter(arranged.values()))
        chosen = plan(self.network, like.dtype, like.device.type)
        return chosen.run(arranged, self.scale)

    def _at_sites(
        self, way: Sites, tensors: Mapping[str, Tensor], narrowed: Collection[str]
    ) -> Tensor:
        """Sum over kept positions of one operand."""
        sizes = self.network.sizes
        operands, held = [], dict[str, Tensor | None]()
        for name, own in way.orders.items():
            axes = self._axes(name)
            wanted = [merged(axis, self.original.sizes, self._kept) for axis in axes]
            if name == way.read:  # where it has which positions does not matter
                anywhere = {(each.read,) for each in way.meetings}
                wanted = [
                    None if axis in anywhere else each
                    for axis, each in zip(axes, wanted, strict=True)
                ]
            tensor, has = self._read(name, tensors[name], name in narrowed, wanted)
            held |= {
                axis[0]: each
                for axis, each in zip(axes, has, strict=True)
                if len(axis) == 1
            }
            shape = [
                length if len(axis) == 1 else sizes[index]
                for axis, length in zip(axes, tensor.shape, strict=True)
                for index in axis
            ]
            order = [index for axis in axes for index in axis]
            tensor = tensor.reshape(shape)
            operands.append(tensor.permute([order.index(index) for index in own]))
        result = way.run(sizes, operands, held, self._kept)
        return result.reshape(self.network.shape).mul_(self.scale)

    @cached_property
    def _counts(self) -> tuple[tuple[str, int], ...]:
        return tuple((index, len(kept)) for index, kept in self.draws.items())

    @cached_property
    def _kept(self) -> dict[str, Tensor]:
        return {index: kept.indices.cpu() for index, kept in self.draws.items()}

    def _touched(self, index: str) -> Tensor | None:
        """Values of an index that take part; None for all.

        If it is not sampled, those that it has where it meets one that is in a pattern.
        """
        if index in self._kept:
            return self._kept[index]
        sizes = self.original.sizes
        for pattern in self.original.patterns:
            kept = [other for other in pattern.indices if other in self._kept]
            if index not in pattern.indices or len(kept) != 1 or pattern.summed:
                continue
            free = [j for j in pattern.indices if j not in (index, kept[0])]
            if len(free) == 1:
                given = {
                    kept[0]: self._kept[kept[0]].numpy(),
                    free[0]: np.arange(sizes[free[0]])[:, None],
                }
                met = np.unique(reach(pattern, sizes, given, index)[0])
                return torch.from_numpy(met[met >= 0])
        return None

    def _axes(self, name: str) -> tuple[tuple[str, ...], ...]:
        return indices_of_axes(self.original, name)

    def _read(
        self,
        name: str,
        tensor: Tensor,
        narrowed: bool,
        wanted: Sequence[Tensor | None],
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """An operand's slices times their factors, and their positions; None for all.

        All axes are read in one go, since that is where time is spent.
        """
        has = self.positions(name) if narrowed else wanted
        if not narrowed:
            tensor = select(tensor, wanted)
        for number, factors in self._weights(name).items():
            own = has[number]
            tensor = scaled(tensor, number, factors if own is None else factors[own])
        return tensor, has

    def _width(self, indices: Sequence[str]) -> int:
        """Size of an axis in the narrowed network."""
        return prod(self.network.sizes[index] for index in indices)

    def _weights(self, name: str) -> dict[int, Tensor]:
        """Factors along whole axes of an operand, if slices have their own.

        They are those of one operand; if it occurs twice, each has their square root.
        """
        factors: dict[str, Tensor] = {}
        for index, kept in self.draws.items():
            carriers = [o.name for o in self.original.operands if index in o.indices]
            if kept.weights is not None and carriers[0] == name:
                each = kept.weights.cpu().pow(1 / carriers.count(name))
                whole = each.new_ones(self.original.sizes[index])
                factors[index] = whole.index_copy(0, self._kept[index], each)
        if not factors:
            return {}
        weights = {}
        for number, indices in enumerate(self._axes(name)):
            if any(index in factors for index in indices):
                along = torch.ones(1, dtype=torch.float64)
                for index in indices:
                    ones = along.new_ones(self.original.sizes[index])
                    along = torch.outer(along, factors.get(index, ones)).flatten()
                weights[number] = along
        return weights


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
