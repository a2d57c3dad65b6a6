"""Mirrored networks: a half times its primed copy.

Nearly every curvature quantity has this form. Primitives that exploit it see the
network through a :class:`Half`, whose roles follow from structure alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from tn_extensions.network import Operand, Pattern, TensorNetwork
from tn_extensions.network.index import is_primed, prime
from tn_extensions.network.nodes import Node, Pair, Progression
from tn_extensions.network.rules import is_mirrored
from tn_extensions.network.rules.mirror import exchange


def nodes_of_half(network: TensorNetwork) -> list[Node]:
    """The nodes that are no copies; a pair is in neither half."""
    return [node for node in network.nodes if not any(map(is_primed, node.indices))]


def shared_indices(network: TensorNetwork) -> list[str]:
    """The indices that a half shares with its copy."""
    return [
        index
        for index in network.indices
        if not is_primed(index) and prime(index) not in network.sizes
    ]


@lru_cache(maxsize=512)
def split_in_half(network: TensorNetwork) -> tuple[Node, ...] | None:
    """The nodes of one half of any operands; None if not mirrored, or joined."""
    if network.pairs or not is_mirrored(network):
        return None
    nodes = tuple(nodes_of_half(network))
    return nodes if 2 * len(nodes) == len(network.nodes) else None


def rows_of_gram(network: TensorNetwork) -> tuple[str, ...] | None:
    """The indices of rows, of a result ``(rows, rows')``; None if it is not of that."""
    if len(network.output) != 2:
        return None
    rows, copies = network.output
    return rows if rows and copies == tuple(map(prime, rows)) else None


@dataclass(frozen=True, slots=True)
class PairedDim:
    """A dimension in which the halves are joined by a pair of patterns.

    Args:
        pair: The node.
        read: Index that the operand carries.
        free: Index of the result; None if the kernel has a single entry.
        progressions: What each value of ``free`` reads; none if what the shared index
            enumerates is no progression.
    """

    pair: Pair
    read: str
    free: str | None
    progressions: tuple[Progression, ...]


@dataclass(frozen=True)
class Half:
    """One half of a mirrored network that holds two copies of one operand.

    Args:
        operand: The unprimed copy.
        patterns: Its patterns.
        dims: The dimensions in which a pair joins the halves.
        batch: Indices that both halves and the result carry.
        columns: Indices of the half that the result carries.
        rows: Indices that both halves carry and that are summed.
        sizes: Sizes of all indices.
    """

    operand: Operand
    patterns: tuple[Pattern, ...]
    dims: tuple[PairedDim, ...]
    batch: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    sizes: Mapping[str, int]

    @classmethod
    @lru_cache(maxsize=512)
    def of(cls, network: TensorNetwork) -> Half | None:
        """The half of a network ``(batch, columns, columns')``; None if not one."""
        if len(network.output) != 3 or not is_mirrored(network):
            return None
        batch, columns, copies = network.output
        nodes = nodes_of_half(network)
        operands = [node for node in nodes if isinstance(node, Operand)]
        if (
            len(network.operands) != 2
            or len(operands) != 1
            or len({operand.name for operand in network.operands}) != 1
            or tuple(map(exchange(network), columns)) != copies
            or tuple(map(exchange(network), batch)) != batch
        ):
            return None
        (operand,) = operands
        dims = [_paired_dim(pair, operand, network) for pair in network.pairs]
        found = tuple(dim for dim in dims if dim is not None)
        if len(found) != len(dims):
            return None
        return cls(
            operand,
            tuple(node for node in nodes if isinstance(node, Pattern)),
            found,
            batch,
            columns,
            tuple(j for j in shared_indices(network) if j in network.summed_indices),
            network.sizes,
        )

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The operand, its patterns, and what joins it with its copy."""
        return (self.operand, *self.patterns, *(dim.pair for dim in self.dims))

    @property
    def unpaired_columns(self) -> tuple[str, ...]:
        """Columns that do not come from a pair."""
        paired = {dim.free for dim in self.dims}
        return tuple(index for index in self.columns if index not in paired)

    @property
    def has_lags(self) -> bool:
        """Whether it is joined, and each pair holds a kernel dimension of its own."""
        return self.is_joined and all(dim.progressions for dim in self.dims)

    @property
    def is_joined(self) -> bool:
        """Whether there are pairs, each with an index of the result."""
        return bool(self.dims) and all(dim.free is not None for dim in self.dims)

    def network(self, rows_last: bool = True) -> TensorNetwork:
        """The half alone, with axes ``(batch, columns, rows)``; only without pairs."""
        assert not self.dims
        matrix = (self.columns, self.rows) if rows_last else (self.rows, self.columns)
        return TensorNetwork.unchecked(
            [self.operand, *self.patterns], (self.batch, *matrix), self.sizes
        )


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
