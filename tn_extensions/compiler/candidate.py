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
"""Operations beyond which a candidate is not even priced.

Python issues them one by one, and each is described before: that takes long, whatever
they work on. Long kernels have other candidates, of a few large operations.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """The device and the limits that candidates are made for.

    Args:
        rates: Speeds of the device.
        itemsize: Bytes per element in which the plan computes.
        budget: Bytes that may be held beyond inputs and output.
        planner: Chooses how a part of a network is evaluated to a tensor.
        varying: Indices, and their copies, whose sizes may differ from call to call.
    """

    rates: Rates
    itemsize: int
    budget: int
    planner: Callable[[TensorNetwork, Target], Candidate]
    varying: frozenset[str] = frozenset()

    def best(self, part: TensorNetwork) -> Candidate:
        """Choose how a part of a network is evaluated; to a tensor of its own."""
        return self.planner(part, self)

    def with_varying(self, index: str) -> Target:
        """Return the target with one more index whose size may differ."""
        return replace(self, varying=self.varying | {index, prime(index)})


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that a candidate does, once or several times: a row of its table.

    Args:
        name: What it is, such as ``"matrix product"``.
        shapes: Of what, such as ``"64 x 576 @ 576 x 64"``.
        cost: Estimate for doing it once.
        times: How often it is done.
    """

    name: str
    shapes: str = ""
    cost: Cost = Cost()
    times: int = 1

    def repeated(self, times: int) -> Operation:
        """Return the operation, done so many times as often."""
        return replace(self, times=self.times * times)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way of evaluating a network.

    Args:
        name: The primitive, with those of its parts in brackets.
        operations: What it does, in order. Candidates of a network differ in their name
            or in the names or shapes of their operations.
        peak: Largest number of elements held beyond inputs and output.
        run: Evaluates on tensors into an accumulator of the network's output shape.
        compute: If the result is a mere view or a fresh tensor, computes it without an
            accumulator.
        differentiable: Whether it does so by operations that can be differentiated.

    Attributes:
        cost: The cost of all operations, with what is held at most.
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
        """Whether autograd, or a compiler, can record what it does."""
        return self.compute is not None and self.differentiable

    @property
    def label(self) -> str:
        """Text that tells the candidate from the others of its network."""
        rows = (f"{op.times} {op.name} {op.shapes}" for op in self.operations)
        return "; ".join([self.name, *rows])

    def value(self, tensors: Tensors) -> Tensor:
        """The result, of a candidate that needs no accumulator."""
        assert self.compute is not None
        return self.compute(tensors)

    def with_value(self, shape: tuple[int, ...]) -> Candidate:
        """Return a candidate that computes a tensor, differentiable or not."""
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
        """The candidates for the network; none if its structure does not match.

        Parts that are networks of their own are evaluated by ``target.best(part)``.
        """
        ...


_AS_DEFINED: set[Primitive] = set()


def as_defined(primitive: Primitive) -> Primitive:
    """Show a primitive networks as they were defined, not simplified.

    For primitives that know how torch's kernels see a network, and for those that
    evaluate parts: each part is simplified on its own.
    """
    _AS_DEFINED.add(primitive)
    return primitive


def wants_definition(primitive: Primitive) -> bool:
    """Tell whether a primitive is shown networks as they were defined."""
    return primitive in _AS_DEFINED
