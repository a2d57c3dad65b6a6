"""Mirrored networks: a half times its primed copy.

Nearly every curvature quantity has this form. Primitives that exploit it see the
network through a :class:`Half`, whose roles follow from structure alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tn_extensions.network import Operand, Pattern, TensorNetwork
from tn_extensions.network.index import is_primed, prime
from tn_extensions.network.nodes import Pair, Progression
from tn_extensions.network.rules import is_mirrored, mirror


@dataclass(frozen=True, slots=True)
class PairedDim:
    """A dimension in which the halves are joined by a pair of patterns.

    Args:
        pair: The node.
        read: Index that the operand carries.
        free: Index of the result; None if the kernel has a single entry.
        progressions: What each value of ``free`` reads.
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
    def of(cls, network: TensorNetwork) -> Half | None:
        """The half of a network ``(batch, columns, columns')``; None if not one."""
        if len(network.output) != 3 or not is_mirrored(network):
            return None
        batch, columns, copies = network.output
        operands = [o for o in network.operands if not any(map(is_primed, o.indices))]
        if (
            len(network.operands) != 2
            or len(operands) != 1
            or len({operand.name for operand in network.operands}) != 1
            or mirror(network).output != (batch, copies, columns)
        ):
            return None
        (operand,) = operands
        dims = [_paired_dim(pair, operand, network) for pair in network.pairs]
        found = tuple(dim for dim in dims if dim is not None)
        if len(found) != len(dims):
            return None
        return cls(
            operand,
            tuple(p for p in network.patterns if not any(map(is_primed, p.indices))),
            found,
            batch,
            columns,
            tuple(
                index
                for index in network.summed_indices
                if not is_primed(index) and prime(index) not in network.sizes
            ),
            network.sizes,
        )

    @property
    def unpaired_columns(self) -> tuple[str, ...]:
        """Columns that do not come from a pair."""
        paired = {dim.free for dim in self.dims}
        return tuple(index for index in self.columns if index not in paired)

    def network(self) -> TensorNetwork:
        """The half alone, with axes ``(batch, columns, rows)``; only without pairs."""
        assert not self.dims
        return TensorNetwork(
            (self.operand, *self.patterns),
            (self.batch, self.columns, self.rows),
            self.sizes,
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
    progressions = pattern.progressions(read, pair.shared, sizes)
    return PairedDim(pair, read, free[0] if free else None, tuple(progressions))
