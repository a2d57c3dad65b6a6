"""Index patterns of which one index is sampled: gathers, since one entry is hit.

Given two indices of a pattern, the third has at most one value. So for the kept values
of a sampled index ``j`` and all values of the index ``t`` that the result carries, the
operand with the third index ``u`` is read at ``u(t, j)``: the pattern is gone, and what
remains is as small as what was kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tn_extensions.network import Affine, Pattern, TensorNetwork
from tn_extensions.network.nodes import Sizes


def reach(
    pattern: Pattern, sizes: Sizes, given: dict[str, Tensor], wanted: str
) -> Tensor:
    """Values of one index of a pattern by those of all others; -1 where there is none.

    Args:
        pattern: A pattern with nothing summed.
        sizes: Sizes of its indices.
        given: Values of all indices but one, of shapes that broadcast.
        wanted: That one.
    """
    terms = dict(pattern.position.terms)
    hit = torch.tensor(pattern.position.start)
    for index, stride in terms.items():
        if index != wanted:
            hit = hit + stride * given[index]
    if wanted == pattern.index:
        values, exact = hit, torch.tensor(True)
    else:
        rest = given[pattern.index] - hit
        values = rest.div(terms[wanted], rounding_mode="floor")
        exact = values * terms[wanted] == rest
    inside = exact & (values >= 0) & (values < sizes[wanted])
    return torch.where(inside, values, -1)


@dataclass(frozen=True, slots=True)
class Gather:
    """How a pattern is contracted into an operand.

    Args:
        pattern: The pattern.
        kept: The sampled index, whose kept values are enumerated.
        read: The index at which the other operand is read.
        free: The index of the result, which that operand carries from now on.
    """

    pattern: Pattern
    kept: str
    read: str
    free: str

    @classmethod
    def all(cls, network: TensorNetwork, index: str) -> list[Gather]:
        """The ways of gathering a sampled index: one if any."""
        found = []
        for pattern in network.patterns:
            if index not in pattern.indices or len(set(pattern.indices)) != 3:
                continue
            for read in set(pattern.indices) - {index}:
                (free,) = set(pattern.indices) - {index, read}
                carriers = [_others(network, j, pattern) for j in (index, read, free)]
                if (
                    [len(nodes) for nodes in carriers] == [1, 1, 0]
                    and carriers[0] != carriers[1]
                    and free in network.output_indices
                    and not {index, read} & {*network.output_indices}
                    and not pattern.summed
                    and all(_alone(network, j) for j in (index, read))
                ):
                    found.append(cls(pattern, index, read, free))
        return found

    @property
    def one(self) -> str:
        """Index of size one that takes the free one's place in the pattern."""
        return f"{self.free}@"

    @property
    def identity(self) -> Pattern:
        """What is left of the pattern: ``kept = read``.

        It is still a dimension of a convolution, with a kernel of one entry, so that
        torch's kernels need no operand to be rearranged. The index that was hit still
        is, as in the other dimensions.
        """
        hit = self.pattern.index if self.pattern.index != self.free else self.kept
        term = self.read if hit == self.kept else self.kept
        return Pattern(hit, Affine(((term, 1), (self.one, 1))))

    def share(self, sizes: Sizes, count: int) -> float:
        """Work after gathering, of a number of kept values, by work before."""
        before = prod(sizes[index] for index in self.pattern.position.indices)
        return count * sizes[self.free] / before

    def positions(self, sizes: Sizes, kept: Tensor) -> Tensor:
        """Where the other operand is read: ``[free, kept]``, -1 where it is zero."""
        free = torch.arange(sizes[self.free])[:, None]
        given = {self.free: free, self.kept: kept[None]}
        return reach(self.pattern, sizes, given, self.read)


def _others(network: TensorNetwork, index: str, pattern: Pattern) -> list[object]:
    """Nodes with an index, but for a pattern."""
    return [node for node in network.carriers(index) if node is not pattern]


def _alone(network: TensorNetwork, index: str) -> bool:
    """Whether an index has whole axes of operands for its own."""
    axes = [axis for operand in network.operands for axis in operand.axes]
    own = [axis for axis in axes if index in axis.position.indices]
    return all(axis.whole(network.sizes) == (index,) for axis in own)
