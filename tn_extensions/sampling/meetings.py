"""Where two indices of a pattern lead: at most one value of the third."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tn_extensions.network import Operand, Pattern, TensorNetwork
from tn_extensions.network.nodes import Sizes

Positions = NDArray[np.signedinteger[Any]]


def reach(
    pattern: Pattern, sizes: Sizes, given: Mapping[str, Positions], wanted: str
) -> tuple[Positions, NDArray[np.bool_]]:
    """Values of one index of a pattern by those of all others.

    Args:
        pattern: A pattern with nothing summed.
        sizes: Sizes of its indices.
        given: Values of all indices but one, of shapes that broadcast.
        wanted: That one.

    Returns:
        Values, -1 for none; and where there is one if the index goes on without end.
    """
    terms = dict(pattern.position.terms)
    hit = np.asarray(pattern.position.start)
    for index, stride in terms.items():
        if index != wanted:
            hit = hit + stride * given[index]
    if wanted == pattern.index:
        values, exact = hit, np.ones(hit.shape, dtype=bool)
    else:
        values, rest = np.divmod(given[pattern.index] - hit, terms[wanted])
        exact = rest == 0
    inside = exact & (values >= 0) & (values < sizes[wanted])
    return np.where(inside, values, -1), exact


class Phase(NamedTuple):
    """Kept positions that meet the same values of the free index.

    Args:
        members: Which positions those are, ``[kept]``.
        values: The values that they meet.
    """

    members: NDArray[np.bool_]
    values: Positions


@dataclass(frozen=True, slots=True)
class Meeting:
    """A pattern between two operands and the result.

    Args:
        pattern: The pattern.
        kept: Its index of the operand whose positions are kept.
        read: That of the other one.
        free: That of the result.
    """

    pattern: Pattern
    kept: str
    read: str
    free: str

    @classmethod
    def of(
        cls, network: TensorNetwork, pattern: Pattern, kept: Operand, read: Operand
    ) -> Meeting | None:
        """A pattern of a network as a meeting; None if it is none."""
        indices = set(pattern.indices)
        if len(pattern.indices) != 3 or len(indices) != 3 or pattern.summed:
            return None
        carried = (kept.indices, read.indices, network.output_indices)
        found = [indices & set(each) for each in carried]
        if [len(each) for each in found] != [1, 1, 1] or set.union(*found) != indices:
            return None
        return cls(pattern, *(each.pop() for each in found))

    @property
    def num_phases(self) -> int:
        """Number of phases, unless there are fewer positions."""
        if self.read == self.pattern.index:
            return 1
        terms = dict(self.pattern.position.terms)
        other = self.kept if self.free == self.pattern.index else self.free
        return abs(terms[self.read]) // gcd(terms[self.read], terms[other])

    def reads(self, sizes: Sizes) -> tuple[Positions, tuple[Phase, ...]]:
        """Where the other operand is read, ``[kept, free]`` (-1: none), and phases."""
        return _reads(self, sizes[self.kept], sizes[self.read], sizes[self.free])


@lru_cache(maxsize=1024)
def _reads(
    meeting: Meeting, kept: int, read: int, free: int
) -> tuple[Positions, tuple[Phase, ...]]:
    given = {
        meeting.kept: np.arange(kept)[:, None],
        meeting.free: np.arange(free)[None],
    }
    sizes = {meeting.kept: kept, meeting.read: read, meeting.free: free}
    table, exact = reach(meeting.pattern, sizes, given, meeting.read)
    exact = np.broadcast_to(exact, table.shape)
    masks, which = np.unique(exact, axis=0, return_inverse=True)
    phases = (
        Phase(which.reshape(-1) == number, mask.nonzero()[0])
        for number, mask in enumerate(masks)
        if mask.any()
    )
    return table, tuple(phases)
