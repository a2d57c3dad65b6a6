"""Candidates: ways of evaluating a network, and the primitives that offer them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.allocate import empty
from tn_extensions.compiler.cost import Cost, Rates
from tn_extensions.network import TensorNetwork
from tn_extensions.network.index import prime

Tensors = Mapping[str, Tensor]

MOST_CALLS = 2**15
"""Number of operations above which a candidate is not even considered.

Python issues operations one by one, and a plan describes each of them, which takes
long. For long kernels there are other candidates, with few large operations.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """The device and the limits that candidates are made for.

    Args:
        rates: Speeds of the device.
        itemsize: Bytes per element of the type in which the plan computes.
        budget: Bytes that may be held beyond inputs and output.
        planner: Chooses a candidate for a part of a network.
        varying: Indices, and their copies, whose sizes may differ from call to call.
    """

    rates: Rates
    itemsize: int
    budget: int
    planner: Callable[[TensorNetwork, Target], Candidate]
    varying: frozenset[str] = frozenset()

    def best(self, part: TensorNetwork) -> Candidate:
        """Choose a candidate that evaluates a part of a network to a new tensor."""
        return self.planner(part, self)

    def with_varying(self, index: str) -> Target:
        """Return the target with one more index of varying size."""
        return replace(self, varying=self.varying | {index, prime(index)})


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that a candidate does, once or several times: a row of its table.

    Args:
        name: Its name, such as ``"matrix product"``.
        shapes: The shapes it works on, such as ``"64 x 576 @ 576 x 64"``.
        cost: Estimated cost of doing it once.
        times: How often it is done.
    """

    name: str
    shapes: str = ""
    cost: Cost = Cost()
    times: int = 1

    def repeated(self, times: int) -> Operation:
        """Return the operation, repeated so many times."""
        return replace(self, times=self.times * times)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way of evaluating a network.

    Args:
        name: Name of the primitive, with the primitives of its parts in brackets.
        operations: The operations, in order. No two candidates of a network have the
            same name and operations of the same names and shapes.
        peak: Largest number of elements held beyond inputs and output.
        run: Evaluates the network on tensors into an accumulator of its output's shape.
        compute: Evaluates without an accumulator, if the result is a view or a new
            tensor anyway.
        differentiable: Whether ``compute`` only uses operations that can be
            differentiated.

    Attributes:
        cost: The cost of all operations together, with the candidate's peak.
    """

    name: str
    operations: tuple[Operation, ...]
    peak: int
    run: Callable[[Tensors, Accumulator], None]
    compute: Callable[[Tensors], Tensor] | None = None
    differentiable: bool = True
    cost: Cost = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        total = Cost()
        for operation in self.operations:
            total = total + operation.cost.times(operation.times)
        object.__setattr__(self, "cost", total.holding(self.peak))

    @property
    def is_differentiable(self) -> bool:
        """True if autograd or a compiler can record the operations."""
        return self.compute is not None and self.differentiable

    @property
    def label(self) -> str:
        """Text that identifies the candidate among those of its network."""
        rows = (f"{op.times} {op.name} {op.shapes}" for op in self.operations)
        return "; ".join([self.name, *rows])

    def value(self, tensors: Tensors) -> Tensor:
        """Compute the result without an accumulator."""
        assert self.compute is not None
        return self.compute(tensors)

    def with_value(self, shape: tuple[int, ...]) -> Candidate:
        """Return a candidate that needs no accumulator, differentiable or not."""
        if self.compute is not None:
            return self

        def compute(tensors: Tensors) -> Tensor:
            out = empty(shape, next(iter(tensors.values())))
            self.run(tensors, Accumulator(out, 1.0, fresh=True))
            return out

        return replace(self, compute=compute, differentiable=False)


class Primitive(Protocol):
    """A way of contracting networks of some structure."""

    def __call__(self, network: TensorNetwork, target: Target) -> Iterable[Candidate]:
        """Return candidates for a network; none if its structure does not match.

        For a part that is a network of its own, use ``target.best(part)``.
        """
        ...


_AS_DEFINED: set[Primitive] = set()


def as_defined(primitive: Primitive) -> Primitive:
    """Let a primitive see networks as they were defined, not simplified.

    Some primitives recognise convolutions, which simplification hides. Others evaluate
    parts, and each part is simplified on its own.
    """
    _AS_DEFINED.add(primitive)
    return primitive


def wants_definition(primitive: Primitive) -> bool:
    """Tell whether a primitive sees networks as they were defined."""
    return primitive in _AS_DEFINED
