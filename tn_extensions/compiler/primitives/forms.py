"""Networks of two operands as batches of matrix products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from tn_extensions.compiler.primitives.unfold import (
    UnfoldedDim,
    Unfolding,
    unfolded_dim,
)
from tn_extensions.network import Operand, TensorNetwork
from tn_extensions.network.nodes import Node


@dataclass(frozen=True)
class Side:
    """An operand, and the patterns through which only it is read."""

    operand: Operand
    dims: tuple[UnfoldedDim, ...]

    @property
    def read(self) -> set[str]:
        """The indices of the operand that its patterns replace."""
        return {dim.read for dim in self.dims}

    @property
    def indices(self) -> list[str]:
        """The indices of the unfolded operand."""
        found = [index for index in self.operand.indices if index not in self.read]
        added = (j for dim in self.dims for j in (dim.free, dim.shared) if j)
        return list(dict.fromkeys([*found, *added]))

    def nodes(self, network: TensorNetwork) -> list[Node]:
        """Return the operand and its patterns."""
        own = [one for one in network.patterns if self.read & {*one.indices}]
        return [self.operand, *own]

    def unfolding(self, order: Sequence[str], sizes: Mapping[str, int]) -> Unfolding:
        """Return the unfolding of the operand with its indices in a given order."""
        return Unfolding(self.operand, self.dims, order, sizes)


@dataclass(frozen=True)
class MatrixForm:
    """A batch of products of ``[rows, terms]`` and ``[columns, terms]``.

    Args:
        left: One operand.
        right: The other.
        batch: Indices of both and of the result.
        rows: Indices of the left operand and of the result.
        columns: Indices of the right operand and of the result.
        terms: Indices of both that are summed.
        sizes: Sizes of all indices.
    """

    left: Side
    right: Side
    batch: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    terms: tuple[str, ...]
    sizes: Mapping[str, int]

    @classmethod
    def all(cls, network: TensorNetwork) -> Iterator[MatrixForm]:
        """Yield the forms of a network, the one with the fewest entries first.

        They differ in which operand is read through patterns that fit both.
        """
        if len(network.operands) != 2 or network.pairs or 0 in network.sizes.values():
            return
        one, two = network.operands
        found: list[MatrixForm] = []
        for first, second in ((one, two), (two, one)):
            sides = _sides(network, first, second)
            if sides is None:
                continue
            left, right = sides if first is one else sides[::-1]
            form = cls._of(network, left, right)
            if form is not None and form not in found:
                found.append(form)
        yield from sorted(found, key=lambda form: form.entries)

    @classmethod
    def _of(cls, network: TensorNetwork, left: Side, right: Side) -> MatrixForm | None:
        kept = set(network.output_indices)
        one, two = left.indices, right.indices
        both = [index for index in one if index in two]
        rows, columns = ([j for j in found if j not in both] for found in (one, two))
        terms = tuple(index for index in both if index not in kept)
        if not terms or not {*rows, *columns} <= kept:
            return None
        batch = tuple(index for index in both if index in kept)
        sizes = network.sizes
        return cls(left, right, batch, tuple(rows), tuple(columns), terms, sizes)

    @property
    def swapped(self) -> MatrixForm:
        """The form with left and right exchanged."""
        return replace(
            self,
            left=self.right,
            right=self.left,
            rows=self.columns,
            columns=self.rows,
        )

    @property
    def entries(self) -> int:
        """Number of entries of both matrices."""
        return self.size(self.left.indices) + self.size(self.right.indices)

    def size(self, indices: Iterable[str]) -> int:
        """Return the number of values of some indices together."""
        return prod(self.sizes[index] for index in indices)


def _sides(
    network: TensorNetwork, first: Operand, second: Operand
) -> tuple[Side, Side] | None:
    """Assign patterns to the operands: all that fit the first, the rest to the second.

    Return None if a pattern fits neither.
    """
    left = list(network.patterns)
    sides = []
    for operand in (first, second):
        dims = []
        for pattern in list(left):
            dim = unfolded_dim(pattern, operand, network.sizes)
            if (
                dim is not None
                and dim.read not in network.output_indices
                and len(network.carriers(dim.read)) == 2
            ):
                dims.append(dim)
                left.remove(pattern)
        sides.append(Side(operand, tuple(dims)))
    return None if left else (sides[0], sides[1])
