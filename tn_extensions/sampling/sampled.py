"""Column-row sampling on a network: draw slices along indices, narrow the operands."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from tn_extensions.compiler import plan
from tn_extensions.errors import describe
from tn_extensions.network import TensorNetwork
from tn_extensions.sampling.gather import reach
from tn_extensions.sampling.narrowed import (
    Narrowed,
    indices_of_axes,
    narrow,
    samplable,
)
from tn_extensions.sampling.norms import slice_norms
from tn_extensions.sampling.positions import find, merged, place, scaled, select, split
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

        Of a pattern with a sampled index, one operand is read through it beforehand and
        carries the index of the result; or, where that is more work, the narrowed
        operand gets zeros for dropped slices, and the index keeps its size.
        """
        return self._narrowed.network

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
        arranged = {
            name: self._arranged(name, tensor, name in narrowed)
            for name, tensor in tensors.items()
        }
        like = next(iter(arranged.values()))
        chosen = plan(self.network, like.dtype, like.device.type)
        result = chosen.run(arranged, self.scale)
        for axis, indices in enumerate(self.original.output):
            positions = merged(indices, self.original.sizes, self._kept)
            if positions is not None:
                result = place(result, axis, positions, self.original.shape[axis])
        return result

    @cached_property
    def _narrowed(self) -> Narrowed:
        counts = tuple((index, len(kept)) for index, kept in self.draws.items())
        return narrow(self.original, counts)

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
                    kept[0]: self._kept[kept[0]],
                    free[0]: torch.arange(sizes[free[0]])[:, None],
                }
                met = reach(pattern, sizes, given, index).unique()
                return met[met >= 0]
        return None

    def _axes(self, name: str) -> tuple[tuple[str, ...], ...]:
        return indices_of_axes(self.original, name)

    def _arranged(self, name: str, tensor: Tensor, narrowed: bool) -> Tensor:
        """An operand as the narrowed network reads it.

        All axes are read in one go, since that is where time is spent.
        """
        axes, sizes = self._axes(name), self.original.sizes
        held = self.positions(name) if narrowed else (None,) * len(axes)
        gathers = {(gather.read,): gather for gather in self._narrowed.gathers}
        origins: list[Tensor | None] = []  # in the whole operand
        reads: list[Tensor | None] = []  # in the one at hand
        inside: dict[int, Tensor] = {}
        for number, (indices, own) in enumerate(zip(axes, held, strict=True)):
            origin = merged(indices, sizes, self._kept)
            read = origin if own is None else None
            if indices in gathers:
                gather = gathers[indices]
                table = gather.positions(sizes, self._kept[gather.kept])
                present = origin if own is None else own
                found = table if present is None else find(table, present)
                inside[number] = found >= 0
                origin = table.flatten().clamp(min=0)
                read = origin if own is None else found.flatten().clamp(min=0)
            origins.append(own if origin is None else origin)
            reads.append(read)
        tensor = select(tensor, reads)
        weights = self._weights(name)
        extents = [prod(sizes[index] for index in indices) for indices in axes]
        for number in reversed(range(len(axes))):
            origin = origins[number]
            if number in weights:
                factor = weights[number] if origin is None else weights[number][origin]
                tensor = scaled(tensor, number, factor)
            if number in inside:
                tensor = split(tensor, number, inside[number])
            elif origin is not None and self._width(axes[number]) != len(origin):
                tensor = place(tensor, number, origin, extents[number])
        return tensor

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
