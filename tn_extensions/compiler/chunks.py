"""Working on a network in parts, along an index of one of its operands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from tn_extensions.compiler.sink import Sink
from tn_extensions.network import Axis, Operand, TensorNetwork


@dataclass(frozen=True, slots=True)
class Chunks:
    """Where an operand can be cut so that parts of the network read parts of it.

    Args:
        name: Name of the operand.
        axis: Its axis, or -1 if it cannot be cut and there is one chunk only.
        index: The index that is cut, the slowest of the axis.
        unit: Stride of the index.
        total: Size of the index.
        kept: Whether the result carries it as its first axis, else parts are summed.
    """

    name: str
    axis: int = -1
    index: str = ""
    unit: int = 1
    total: int = 1
    kept: bool = False

    @classmethod
    def along(
        cls,
        operand: Operand,
        sizes: Mapping[str, int],
        indices: tuple[str, ...],
        kept: bool = False,
    ) -> Chunks:
        """Cut the first axis of the operand whose slowest index is among some.

        What is kept has to be the only index of the result's first axis.
        """
        if kept and len(indices) != 1:
            return cls(operand.name)
        for number, axis in enumerate(operand.axes):
            position = axis.position
            if not position.terms or position.start:
                continue
            *others, (unit, index) = sorted((abs(s), j) for j, s in position.terms)
            reach = sum(stride * (sizes[j] - 1) for stride, j in others)
            whole = axis.extent == unit * sizes[index] and reach < unit
            if index in indices and whole and dict(position.terms)[index] > 0:
                return cls(operand.name, number, index, unit, sizes[index], kept)
        return cls(operand.name)

    def network(self, network: TensorNetwork, count: int) -> TensorNetwork:
        """What is evaluated on a chunk of a network."""
        if self.axis < 0:
            return network

        def cut(operand: Operand) -> Operand:
            axes = list(operand.axes)
            axes[self.axis] = Axis(axes[self.axis].position, count * self.unit)
            return replace(operand, axes=tuple(axes))

        nodes = [
            cut(node) if isinstance(node, Operand) and node.name == self.name else node
            for node in network.nodes
        ]
        sizes = {**network.sizes, self.index: count}
        return TensorNetwork(nodes, network.output, sizes)

    def split(self, tensor: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
        """The number of values of the index, and the operand's part, of each chunk."""
        for start in range(0, self.total, size):
            count = min(size, self.total - start)
            if self.axis < 0:
                yield count, tensor
            else:
                at, length = start * self.unit, count * self.unit
                yield count, tensor.narrow(self.axis, at, length)

    def targets(self, sink: Sink, size: int) -> Iterator[Sink]:
        """Where the result of each chunk goes; use each before taking the next."""
        for start in range(0, self.total, size):
            if not self.kept:
                yield sink
                sink.fresh = False
            else:
                out = sink.out.narrow(0, start, min(size, self.total - start))
                yield Sink(out, sink.scale, sink.fresh)
        sink.fresh = False
