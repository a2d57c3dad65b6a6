"""Mirrored networks: a half times its primed copy.

Nearly every curvature quantity has this form. Quantities differ in the nodes of their
halves, and in which indices the copies share, keep or contract. Primitives read that
off a :class:`Half`, never off a quantity's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from tn_extensions.network import Operand, Pattern, TensorNetwork
from tn_extensions.network.index import is_primed, prime
from tn_extensions.network.nodes import Node, Pair, Progression
from tn_extensions.network.rules import is_mirrored
from tn_extensions.network.rules.mirror import exchange


@dataclass(frozen=True, slots=True)
class PairedDim:
    """A dimension in which the halves are joined by a pair of patterns.

    Args:
        pair: The pair.
        read: Index that the operand carries.
        free: Index of the result; None if the kernel has a single entry.
        progressions: Positions that each value of ``free`` reads; empty if ``free`` is
            the index that the pattern hits.
    """

    pair: Pair
    read: str
    free: str | None
    progressions: tuple[Progression, ...]


@dataclass(frozen=True)
class Half:
    """One half of a mirrored network, of any operands.

    Each copy contracts on its own all indices that are neither shared nor kept.

    Args:
        operands: The operands, without their copies.
        patterns: Their patterns.
        dims: The dimensions in which a pair joins the copies of a single operand.
        batch: Indices that the copies share and the result keeps.
        columns: Indices that the result keeps for each copy.
        rows: Indices that the copies share and that are contracted.
        sizes: Sizes of all indices.
    """

    operands: tuple[Operand, ...]
    patterns: tuple[Pattern, ...]
    dims: tuple[PairedDim, ...]
    batch: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    sizes: Mapping[str, int]

    @classmethod
    @lru_cache(maxsize=512)
    def of(cls, network: TensorNetwork) -> Half | None:
        """Find the half of a network; None if it has none.

        The result must only have axes of ``batch``, or be a batch of matrices: at most
        one axis of ``batch``, one of ``columns`` and one of their copies. With pairs,
        the half must have a single operand, and the result all three axes.
        """
        nodes = _unprimed(network)
        image, axes = exchange(network), _columns_apart(network)
        copies = (node.rename(image) for node in nodes)
        both = Counter([*nodes, *copies, *network.pairs])
        if not nodes or both != Counter(network.nodes) or axes is None:
            return None
        operands = tuple(node for node in nodes if isinstance(node, Operand))
        batch, columns = axes
        dims: list[PairedDim] = []
        for pair in network.pairs:
            if len(operands) != 1 or len(network.output) != 3:
                return None
            dim = _paired_dim(pair, operands[0], network)
            if dim is None:
                return None
            dims.append(dim)
        shared = (
            index
            for index in network.summed_indices
            if not is_primed(index) and prime(index) not in network.sizes
        )
        patterns = tuple(node for node in nodes if isinstance(node, Pattern))
        return cls(
            operands,
            patterns,
            tuple(dims),
            batch,
            columns,
            tuple(shared),
            network.sizes,
        )

    @property
    def operand(self) -> Operand:
        """The only operand."""
        (operand,) = self.operands
        return operand

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The operands, their patterns, and the pairs that join the copies."""
        return (*self.operands, *self.patterns, *(dim.pair for dim in self.dims))

    @property
    def shared(self) -> tuple[str, ...]:
        """Indices that the copies share, in the order of the nodes."""
        found = {*self.batch, *self.rows}
        return tuple(
            dict.fromkeys(j for node in self.nodes for j in node.indices if j in found)
        )

    @property
    def unpaired_columns(self) -> tuple[str, ...]:
        """Columns that do not come from a pair."""
        paired = {dim.free for dim in self.dims}
        return tuple(index for index in self.columns if index not in paired)

    @property
    def has_lags(self) -> bool:
        """True if pairs join the copies and all of them have progressions."""
        return self.is_joined and all(dim.progressions for dim in self.dims)

    @property
    def is_joined(self) -> bool:
        """True if pairs join the copies and all of them have an index of the result."""
        return bool(self.dims) and all(dim.free is not None for dim in self.dims)

    def size(self, indices: Iterable[str]) -> int:
        """Return the number of values of some indices together."""
        return prod(self.sizes[index] for index in indices)

    def network(self, *axes: Iterable[str]) -> TensorNetwork:
        """Return the half as a network with given axes; only possible without pairs."""
        assert not self.dims
        nodes: list[Node] = [*self.operands, *self.patterns]
        return TensorNetwork.unchecked(nodes, axes, self.sizes)


def _unprimed(network: TensorNetwork) -> list[Node]:
    """Return the nodes of a half, one of two copies where they share all indices."""
    if is_mirrored(network):
        return [n for n in network.nodes if not any(map(is_primed, n.indices))]
    nodes = list(network.nodes)  # in order
    return nodes[::2] if nodes[::2] == nodes[1::2] else []


def _columns_apart(
    network: TensorNetwork,
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Split a result's indices into batch and columns; None if it has other axes."""
    image, axes = exchange(network), list(network.output)
    columns: tuple[str, ...] = ()
    if len(axes) > 1 and axes[-1] != axes[-2] == tuple(map(image, axes[-1])):
        *axes, columns, copies = axes
        if any(map(is_primed, columns)):  # the result is symmetric
            columns = copies
        if len(axes) > 1:
            return None
    batch = tuple(index for axis in axes for index in axis)
    if any(map(is_primed, (*batch, *columns))) or tuple(map(image, batch)) != batch:
        return None
    return batch, columns


def _paired_dim(
    pair: Pair, operand: Operand, network: TensorNetwork
) -> PairedDim | None:
    pattern = next(
        pattern
        for pattern in (pair.first, pair.second)
        if not any(map(is_primed, pattern.indices))
    )
    carried = [index for index in pattern.indices if index in operand.indices]
    if len(carried) != 1:
        return None
    (read,) = carried
    free = [index for index in pattern.indices if index not in (read, pair.shared)]
    sizes = {**network.sizes, pair.shared: pair.size}
    progressions = (
        pattern.progressions(read, pair.shared, sizes)
        if pattern.index in (read, pair.shared)
        else ()
    )
    return PairedDim(pair, read, free[0] if free else None, progressions)
