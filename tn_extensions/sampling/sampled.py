"""Column-row sampling of a network: draw slices along indices, narrow operands."""

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
    """An unbiased estimate of a network from slices that were drawn.

    Args:
        original: The network that is estimated.
        draws: The kept slices of each sampled index.
    """

    original: TensorNetwork
    draws: Mapping[str, Draw]

    @property
    def network(self) -> TensorNetwork:
        """The network of narrowed operands, which is contracted.

        A sampled index that no pattern carries gets smaller. Other sampled indices keep
        their size; operands carry the indices of their sampled positions, which are
        data.
        """
        return self._narrowed(self._kept)

    @property
    def scale(self) -> float:
        """Factor that all kept slices share."""
        return prod(each.scale for each in self.draws.values())

    @property
    def is_empty(self) -> bool:
        """True if no slice of some index was kept; the estimate is zero then."""
        return not all(map(len, self.draws.values()))

    def positions(self, name: str) -> tuple[Tensor | None, ...]:
        """Return the positions along each axis of an operand that are used, or None.

        These are the kept values of sampled indices, and the values of other indices
        that patterns join to them. None stands for all positions.
        """
        return self._along(name, self._kept | self._reached(name))

    def narrow(self, name: str, tensor: Tensor) -> Tensor:
        """Select the slices of an operand that are used; others need not be stored."""
        return select(tensor, self.positions(name))

    def run(
        self, tensors: Mapping[str, Tensor], narrowed: Collection[str] = ()
    ) -> Tensor:
        """Evaluate the estimate.

        Args:
            tensors: The operands' tensors, by name.
            narrowed: Names of tensors that :meth:`narrow` has returned.

        Returns:
            A tensor of the original network's shape; slices that were dropped are zero.
        """
        kept = {**self._kept}
        for name in narrowed:
            kept |= self._reached(name)
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
        """The kept values of each index of which some values were dropped."""
        return {
            index: kept.indices.cpu()
            for index, kept in self.draws.items()
            if len(kept) < self.original.sizes[index]
        }

    def _reached(self, name: str) -> dict[str, Tensor]:
        """Return the values of an operand's indices that patterns join to kept ones."""
        sizes = self.original.sizes
        axes = indices_of_axes(self.original, name)
        reached = {}
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
                    reached[index] = torch.from_numpy(values[values >= 0])
        return {index: own for index, own in reached.items() if len(own) < sizes[index]}

    def _narrowed(self, kept: Mapping[str, Tensor]) -> TensorNetwork:
        counts = tuple((index, len(own)) for index, own in kept.items())
        return narrow(self.original, counts)

    def _along(
        self, name: str, kept: Mapping[str, Tensor]
    ) -> tuple[Tensor | None, ...]:
        """Return the positions along each axis of an operand at kept values."""
        axes, sizes = indices_of_axes(self.original, name), self.original.sizes
        return tuple(merged(axis, sizes, kept) for axis in axes)

    def _weighted(
        self, name: str, tensor: Tensor, kept: Mapping[str, Tensor]
    ) -> Tensor:
        """Multiply the slices of an operand by their individual factors.

        The factors of an index are applied to a single operand; if it occurs twice,
        each copy is multiplied by their square roots.
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

    The network's sum ``sum_j a_j`` over an index becomes ``sum_j z_j a_j``, where ``z_j
    = 1 / p_j`` if value ``j`` is kept, and zero otherwise. This estimate is unbiased,
    and its operands are smaller. Several indices are drawn independently. If the result
    has a sampled index, its slices are multiplied by ``z_j``.

    Args:
        network: The network to estimate, e.g. ``quantities.weight_vjp(conv, N)``.
        keep: Share of values to keep, by index. An index with share 1 stays whole.
        sampler: Sampling method, see :func:`~tn_extensions.sampling.draw`.
        generator: Source of random numbers (default: torch's CPU generator).
        tensors: Operands by name whose slices' norms determine the probabilities, for
            ``sampler="norm"``. Pass ``x`` alone, or ``x`` and ``g`` for less variance.

    Returns:
        The estimate, to be run on the operands' tensors.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an index cannot be sampled, a share is outside of ``(0, 1]``,
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
            rule = f"contain an operand that depends on {index!r}"
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
        if name not in shapes:
            rule = f"name operands of the network, {', '.join(map(repr, shapes))}"
            raise ValueError(describe("sample", "tensors", rule, repr(name)))
        if tuple(tensor.shape) != shapes[name]:
            argument = f"tensors[{name!r}]"
            rule, got = f"have shape {list(shapes[name])}", list(tensor.shape)
            raise ValueError(describe("sample", argument, rule, got))
