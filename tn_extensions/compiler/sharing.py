"""Sharing: evaluate a common part of networks once, then the networks from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil, prod

from torch import Tensor

from tn_extensions.compiler.allocate import contiguous, empty
from tn_extensions.compiler.candidate import Tensors
from tn_extensions.compiler.chunks import Chunks, Cut
from tn_extensions.compiler.plan import Plan
from tn_extensions.network import TensorNetwork
from tn_extensions.network.parts import stored, substitute
from tn_extensions.recognise import recognise

_PART, _RESULT = "shared part", "own result"
"""Names of operands: the result of the part, and the result of a network."""

Planner = Callable[[TensorNetwork], Plan]


@dataclass(frozen=True)
class Cuts:
    """A network that can be evaluated in chunks.

    Args:
        network: The whole network.
        chunks: The cuts of its operands.
        result: The cut of its result; None if the results of chunks are added.
    """

    network: TensorNetwork
    chunks: Chunks = Chunks({})
    result: Cut | None = None

    @classmethod
    def along(cls, network: TensorNetwork, index: str) -> Cuts | None:
        """Cut a network along an index; None if that is impossible."""
        nodes = (*network.nodes, stored(_RESULT, network))
        found = Chunks.along(nodes, network.sizes, [index])
        cuts = dict(found.cuts)
        result = cuts.pop(_RESULT, None)
        for operand in network.operands:
            # all copies of an operand must be cut in the same way
            if (operand.name in cuts) != (index in operand.indices):
                return None
        return cls(network, replace(found, cuts=cuts), result) if cuts else None

    def operands(
        self, tensors: Tensors, start: int = 0, count: int = 1
    ) -> dict[str, Tensor]:
        """Return a chunk of those operands that are given."""
        cuts, names = self.chunks.cuts, {one.name for one in self.network.operands}
        return {
            name: _narrowed(tensors[name], cuts.get(name), start, count)
            for name in sorted(names & {*tensors})
        }


def _narrowed(tensor: Tensor, cut: Cut | None, start: int, count: int) -> Tensor:
    if cut is None:
        return tensor
    return tensor.narrow(cut.axis, start * cut.unit, count * cut.unit)


def member(network: TensorNetwork, part: TensorNetwork, index: str = "") -> Cuts | None:
    """Write a network in terms of a part's result; None if that is impossible.

    Args:
        network: The network.
        part: The part.
        index: An index of the part's result to cut along (default: none).

    Returns:
        The network, cut along its name for the index.
    """
    found = substitute(network, part, _PART)
    if found is None:
        return None
    rest, names = found
    if not index:
        return Cuts(rest)
    own, *others = {known[index] for known in names}
    # a network with others would multiply different chunks
    return None if others or rest.patterns else Cuts.along(rest, own)


@dataclass(frozen=True)
class Sharing:
    """A part that is evaluated in chunks, each of which serves several networks.

    Args:
        part: The part.
        size: Number of values in a chunk.
        members: The networks in terms of the part's result, by number.
        planner: Plans the networks of a chunk.
    """

    part: Cuts
    size: int
    members: Mapping[int, Cuts]
    planner: Planner
    _plans: dict[int, tuple[Plan, dict[int, Plan]]] = field(
        default_factory=dict, init=False, compare=False
    )

    def plans(self, count: int) -> tuple[Plan, dict[int, Plan]]:
        """Plan the part and the members, for a chunk of so many values."""
        if count not in self._plans:
            own, *members = (
                self.planner(one.chunks.network(one.network, count))
                for one in (self.part, *self.members.values())
            )
            self._plans[count] = own, dict(zip(self.members, members, strict=True))
        return self._plans[count]

    @property
    def number(self) -> int:
        """Number of chunks."""
        return ceil(self.part.chunks.total / self.size)

    @property
    def title(self) -> str:
        """Name of the part, and the size of its chunks."""
        network, index = self.part.network, self.part.chunks.index
        operands = " ".join(sorted({one.name for one in network.operands}))
        kept = " ".join(network.output_indices)
        name = recognise(network) or f"{operands} -> [{kept}]"
        return f"{name}, {self.size} {index} at a time" if index else f"{name}, at once"

    def is_part(self, number: int) -> bool:
        """Tell whether a member is the part itself."""
        network = self.members[number].network
        return network.nodes == (stored(_PART, network),)

    def seconds(self, number: int | None = None) -> float:
        """Estimate the time of a member, or of the part."""
        part, members = self.plans(self.size)
        if number is not None and self.is_part(number):
            return 0.0
        own = part if number is None else members[number]
        return self.number * own.cost.seconds

    @property
    def peak(self) -> int:
        """Largest number of elements held beyond inputs and outputs."""
        part, members = self.plans(self.size)
        own = max(plan.cost.peak for plan in (part, *members.values()))
        held = 0 if any(map(self.is_part, self.members)) else prod(part.network.shape)
        return own + held

    def of(self, members: Mapping[int, Cuts]) -> Sharing:
        """Return the sharing of other members."""
        return replace(self, members=members)

    def run(self, tensors: Tensors) -> dict[int, Tensor]:
        """Evaluate the members on tensors by name; return their results by number."""
        like = tensors[self.part.network.operands[0].name]
        total = self.part.chunks.total
        # if evaluated as a whole, the part is a result itself
        results = {
            number: empty(one.network.shape, like)
            for number, one in self.members.items()
            if self.number > 1 or not self.is_part(number)
        }
        for start in range(0, total, self.size):
            count = min(self.size, total - start)
            part, members = self.plans(count)
            value = contiguous(part.run(self.part.operands(tensors, start, count)))
            for number, one in self.members.items():
                if number not in results:
                    results[number] = value
                    continue
                operands = one.operands(tensors, start, count) | {_PART: value}
                target = _narrowed(results[number], one.result, start, count)
                is_added = start > 0 and one.result is None
                members[number].run(operands, out=target, accumulate=is_added)
            del value  # before the next one is allocated
        return results
