"""One operand of a product that is evaluated a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil

from torch import Tensor

from tn_extensions.compiler.chunks import Chunks
from tn_extensions.compiler.primitives.base import Lower, Lowering, Target, Tensors
from tn_extensions.network import TensorNetwork


@dataclass(frozen=True, slots=True)
class Chunked:
    """A network that is evaluated in chunks, each a tensor of its own.

    Args:
        chunks: Along which index.
        size: Values of the index in all chunks but the last.
        lowerings: By number of values.
    """

    chunks: Chunks
    size: int
    lowerings: Mapping[int, Lowering]

    @classmethod
    def of(
        cls,
        network: TensorNetwork,
        chunks: Chunks,
        size: int,
        target: Target,
        lower: Lower,
    ) -> Chunked:
        """Lower the network for each size of chunk that occurs."""
        counts = {size, chunks.total % size} - {0}
        lowerings = {n: lower(chunks.network(network, n), target) for n in counts}
        return cls(chunks, size, lowerings)

    @property
    def number(self) -> int:
        """Number of chunks."""
        return ceil(self.chunks.total / self.size)

    @property
    def one(self) -> Lowering:
        """How a chunk of full size is evaluated."""
        return self.lowerings[self.size]

    @property
    def steps(self) -> tuple[str, ...]:
        """What is done, a line each."""
        title = "at once:"
        if self.number > 1:
            title = f"in {self.number} chunk(s) of {self.size} {self.chunks.index}:"
        return title, *(f"  {step}" for step in self.one.steps)

    def values(self, tensors: Tensors) -> Iterator[Tensor]:
        """The result on each chunk."""
        for count, part in self.chunks.split(tensors, self.size):
            yield self.lowerings[count].value(part)
