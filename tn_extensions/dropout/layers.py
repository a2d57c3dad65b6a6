"""Layers on inputs of one shape: gradients, and the part of the input they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from tn_extensions.compiler.slices import find, select
from tn_extensions.conv import Conv
from tn_extensions.functional import evaluate
from tn_extensions.network import TensorNetwork, build
from tn_extensions.padding import pad, source_positions, unpad
from tn_extensions.sampling import Draw, Sampled, Sampler, sample


class Layer(Protocol):
    """A layer on inputs of one shape."""

    @property
    def network(self) -> TensorNetwork:
        """The weight's gradient, of the input ``x`` and the output's gradient ``g``."""
        ...

    def sample(
        self,
        keep: Mapping[str, float],
        sampler: Sampler,
        generator: torch.Generator | None,
        x: Tensor,
    ) -> Sampled:
        """Draw slices; ignore indices that the input does not have."""
        ...

    def store(self, sampled: Sampled, x: Tensor) -> Tensor:
        """Return the slices of the input that the estimate needs."""
        ...

    def restore(self, sampled: Sampled, stored: Tensor) -> Tensor:
        """Return the narrowed operand ``x`` of the network from the stored slices."""
        ...

    def input_gradient(self, weight: Tensor, g: Tensor) -> Tensor:
        """Compute the exact gradient of the input."""
        ...

    def bias_gradient(self, g: Tensor) -> Tensor:
        """Compute the exact gradient of the bias."""
        ...


@dataclass(frozen=True)
class ConvLayer:
    """A convolution.

    Padding that copies the input is not stored: positions of the input are drawn, and
    their copies in the padding are kept with them.

    Args:
        conv: Hyper-parameters.
        batch_size: Number ``N`` of samples.
    """

    conv: Conv
    batch_size: int

    @property
    def network(self) -> TensorNetwork:
        """See :class:`Layer`; for padding that is not zero, on the padded input."""
        return evaluate.network("weight_vjp", self.conv, self.batch_size)

    def sample(
        self,
        keep: Mapping[str, float],
        sampler: Sampler,
        generator: torch.Generator | None,
        x: Tensor,
    ) -> Sampled:
        """See :class:`Layer`."""
        if not self.conv.pads_explicitly:
            return _sample(self.network, keep, sampler, generator, x)
        # output positions see the padding; draw all other indices as if it were zero
        bare = replace(self, conv=replace(self.conv, padding_mode="zeros"))
        inside = {j: share for j, share in keep.items() if not j.startswith("o")}
        draws = dict(bare.sample(inside, sampler, generator, x).draws)
        outside = {j: share for j, share in keep.items() if j not in inside}
        if outside:
            seen = pad(x, self.conv) if sampler == "norm" else x
            outer = _sample(self.network, outside, sampler, generator, seen)
            draws.update(outer.draws)
        for number, source in self._sources().items():
            if f"i{number}" in draws:
                draws[f"i{number}"] = _copied(draws[f"i{number}"], source)
        return Sampled(self.network, draws)

    def store(self, sampled: Sampled, x: Tensor) -> Tensor:
        """See :class:`Layer`."""
        positions = list(sampled.positions("x"))
        for number, source in self._sources().items():
            padded = positions[1 + number]
            if padded is not None:
                positions[1 + number] = source[padded].unique()
        return select(x, positions)

    def restore(self, sampled: Sampled, stored: Tensor) -> Tensor:
        """See :class:`Layer`."""
        positions: list[Tensor | None] = [None] * stored.dim()
        taken = sampled.positions("x")
        for number, source in self._sources().items():
            padded = taken[1 + number]
            if padded is not None:
                source = source[padded]
                source = find(source, source.unique())
            positions[1 + number] = source
        return select(stored, positions)

    def input_gradient(self, weight: Tensor, g: Tensor) -> Tensor:
        """See :class:`Layer`; keeps the dtype, unlike :func:`functional.input_vjp`."""
        operands = {"weight": weight, "g": g}
        gradient = evaluate.run(
            "input_vjp", operands, self.conv, batch_size=self.batch_size
        )
        return unpad(gradient, self.conv)

    def bias_gradient(self, g: Tensor) -> Tensor:
        """See :class:`Layer`."""
        return g.sum([axis for axis in range(g.dim()) if axis != 1])

    def _sources(self) -> dict[int, Tensor]:
        """Return the input position that each position copies, by padded dimension."""
        if not self.conv.pads_explicitly:
            return {}
        numbers = range(1, self.conv.num_dims + 1)
        return {j: self._source(j) for j in numbers if any(self.conv.padding[j - 1])}

    def _source(self, number: int) -> Tensor:
        dim = self.conv.dims[number - 1]
        return source_positions(dim.input_size, dim.padding, self.conv.padding_mode)


def _sample(
    network: TensorNetwork,
    keep: Mapping[str, float],
    sampler: Sampler,
    generator: torch.Generator | None,
    x: Tensor,
) -> Sampled:
    """Draw slices; norms are those of the input, the only operand known by then."""
    tensors = {"x": x} if sampler == "norm" else {}
    return sample(network, keep, sampler=sampler, generator=generator, tensors=tensors)


def _copied(draw: Draw, source: Tensor) -> Draw:
    """Return the draw of all positions of a padded axis that copy drawn positions."""
    where = find(source, draw.indices.cpu())
    positions = (where >= 0).nonzero().flatten()
    weights = draw.weights
    if weights is not None:
        weights = weights.cpu()[where[positions]]
    return Draw(positions, draw.scale, weights)


@dataclass(frozen=True)
class LinearLayer:
    """A ``Linear`` layer on inputs ``[N, I1, ..., C_in]`` with any number of axes.

    Args:
        shape: Shape of the input.
        out_features: Number of outputs.
    """

    shape: tuple[int, ...]
    out_features: int

    @property
    def network(self) -> TensorNetwork:
        """See :class:`Layer`; input and output share the indices of positions."""
        return _linear(self.shape, self.out_features)

    def sample(
        self,
        keep: Mapping[str, float],
        sampler: Sampler,
        generator: torch.Generator | None,
        x: Tensor,
    ) -> Sampled:
        """See :class:`Layer`."""
        present = {j: share for j, share in keep.items() if j in self.network.sizes}
        return _sample(self.network, present, sampler, generator, x)

    def store(self, sampled: Sampled, x: Tensor) -> Tensor:
        """See :class:`Layer`."""
        return sampled.narrow("x", x)

    def restore(self, sampled: Sampled, stored: Tensor) -> Tensor:
        """See :class:`Layer`."""
        return stored

    def input_gradient(self, weight: Tensor, g: Tensor) -> Tensor:
        """See :class:`Layer`."""
        return g.matmul(weight)

    def bias_gradient(self, g: Tensor) -> Tensor:
        """See :class:`Layer`."""
        return g.reshape(-1, g.shape[-1]).sum(0)


@lru_cache(maxsize=4096)
def _linear(shape: tuple[int, ...], out_features: int) -> TensorNetwork:
    names = ["n", *(f"i{number}" for number in range(1, len(shape) - 1))]
    shared = dict(zip(names, shape[:-1], strict=False))
    sizes = {**shared, "ci": shape[-1], "co": out_features}
    return build({"x": [*shared, "ci"], "g": [*shared, "co"]}, ["co", "ci"], sizes)
