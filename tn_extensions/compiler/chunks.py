"""Chunks: evaluate a network in parts along an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from tn_extensions.network import Axis, Operand, TensorNetwork
from tn_extensions.network.nodes import Node


class Cut(NamedTuple):
    """The axis along which an operand is cut, and the stride of the index in it."""

    axis: int
    unit: int


@dataclass(frozen=True, slots=True)
class Chunks:
    """An index along which a network can be evaluated in parts.

    Args:
        cuts: The cut of each operand, by name; empty if there is only one chunk.
        index: The index, the slowest of its axis in each operand that carries it.
        total: Size of the index.
    """

    cuts: Mapping[str, Cut]
    index: str = ""
    total: int = 1

    @classmethod
    def along(
        cls,
        nodes: Iterable[Node],
        sizes: Mapping[str, int],
        indices: Iterable[str],
    ) -> Chunks:
        """Cut along the first of some indices for which that is possible.

        An index of a pattern cannot be cut, since chunks would need other patterns.
        """
        nodes = list(nodes)
        for index in indices:
            carriers = [node for node in nodes if index in node.indices]
            cuts = {
                getattr(node, "name", ""): _cut(node, index, sizes) for node in carriers
            }
            found = {name: cut for name, cut in cuts.items() if cut is not None}
            if found and len(found) == len(cuts):
                return cls(found, index, sizes[index])
        return cls({})

    def network(self, network: TensorNetwork, count: int) -> TensorNetwork:
        """Return the network that is evaluated on a chunk of ``count`` values."""
        if not self.cuts:
            return network

        def cut(operand: Operand) -> Operand:
            axes = list(operand.axes)
            axis, unit = self.cuts[operand.name]
            axes[axis] = Axis(axes[axis].position, count * unit)
            return replace(operand, axes=tuple(axes))

        nodes = [
            cut(node) if isinstance(node, Operand) and node.name in self.cuts else node
            for node in network.nodes
        ]
        sizes = {**network.sizes, self.index: count}
        return TensorNetwork.unchecked(nodes, network.output, sizes)

    def split(
        self, tensors: Mapping[str, Tensor], size: int
    ) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
        """Yield the number of values and the operands of each chunk."""
        for start in range(0, self.total, size):
            count = min(size, self.total - start)
            parts = {
                name: tensors[name].narrow(cut.axis, start * cut.unit, count * cut.unit)
                for name, cut in self.cuts.items()
            }
            yield count, {**tensors, **parts}


def _cut(operand: Node, index: str, sizes: Mapping[str, int]) -> Cut | None:
    """Return the cut of an operand along an index that is the slowest of its axis."""
    if not isinstance(operand, Operand):
        return None
    for number, axis in enumerate(operand.axes):
        terms = dict(axis.position.terms)
        if index in terms:
            unit = terms.pop(index)
            reach = sum(abs(stride) * (sizes[j] - 1) for j, stride in terms.items())
            whole = axis.extent == unit * sizes[index] and reach < unit
            return Cut(number, unit) if whole and not axis.position.start else None
    return None
