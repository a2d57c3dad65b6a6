"""What a primitive offers to the planner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from tn_extensions.compiler.allocate import empty
from tn_extensions.compiler.cost import Cost, Rates
from tn_extensions.compiler.sink import Sink
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
    """What is planned for.

    Args:
        rates: Speeds of the device.
        itemsize: Bytes per element in which the plan computes.
        budget: Bytes that may be held beyond inputs and output.
        varying: Indices, and their copies, whose sizes may differ from call to call.
    """

    rates: Rates
    itemsize: int
    budget: int
    varying: frozenset[str] = frozenset()

    def with_varying(self, index: str) -> Target:
        """Return the target with one more index whose size may differ."""
        varying = self.varying | {index, prime(index)}
        return replace(self, varying=varying)


@dataclass(frozen=True, slots=True)
class Lowering:
    """One way of evaluating a network.

    Args:
        primitive: Name of the primitive.
        steps: What it does, a line each.
        cost: Estimate.
        run: Evaluates on tensors into a sink that has the network's output shape.
        view: If the result is a mere view or a fresh tensor of the inputs, computes it
            without a sink, by operations that can be differentiated.
    """

    primitive: str
    steps: tuple[str, ...]
    cost: Cost
    run: Callable[[Tensors, Sink], None]
    view: Callable[[Tensors], Tensor] | None = None

    def describes(self, other: Lowering) -> bool:
        """Tell whether another one takes the same steps, at the same cost."""
        one, two = ((way.primitive, way.steps, way.cost) for way in (self, other))
        return one == two

    def value(self, tensors: Tensors) -> Tensor:
        """The result, of a lowering that needs no sink."""
        assert self.view is not None
        return self.view(tensors)

    def with_value(self, shape: tuple[int, ...]) -> Lowering:
        """The same as a part of others: a tensor of its own, differentiable or not."""
        if self.view is not None:
            return self

        def compute(tensors: Tensors) -> Tensor:
            out = empty(shape, next(iter(tensors.values())))
            self.run(tensors, Sink(out, 1.0, fresh=True))
            return out

        return replace(self, view=compute)


Lower = Callable[[TensorNetwork, Target], Lowering]
"""How a primitive has a part of its network evaluated."""


class Primitive(Protocol):
    """A way of contracting networks of some structure."""

    def __call__(self, network: TensorNetwork, target: Target) -> Iterable[Lowering]:
        """The ways of evaluating the network; none if its structure does not match."""
        ...


class Composite(Protocol):
    """A way of contracting networks of some structure, which has parts evaluated."""

    def __call__(
        self, network: TensorNetwork, target: Target, lower: Lower
    ) -> Iterable[Lowering]:
        """The ways of evaluating the network; none if its structure does not match."""
        ...
