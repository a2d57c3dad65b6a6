"""Plans: which primitive evaluates a network, why, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress, product

import torch
from torch import Tensor

from tn_extensions.compiler.allocate import empty
from tn_extensions.compiler.budget import current_budget
from tn_extensions.compiler.cost import Cost, rates
from tn_extensions.compiler.primitives import (
    COMPOSITES,
    HALVES,
    NATIVE,
    PRIMITIVES,
)
from tn_extensions.compiler.primitives.base import (
    Lowering,
    Primitive,
    Target,
    Tensors,
)
from tn_extensions.compiler.roles import is_plain_convolution
from tn_extensions.compiler.sink import Sink
from tn_extensions.compiler.tracing import is_traced
from tn_extensions.network import Step, TensorNetwork, simplify
from tn_extensions.network.rules import pair, pairable


@dataclass(frozen=True)
class Plan:
    """How a network is evaluated.

    Args:
        network: What was asked for.
        rewriting: The simplifications that came first.
        lowering: The chosen way.
        rejected: The other ways, cheapest first.
        target: Device constants, element size and memory budget.
    """

    network: TensorNetwork
    rewriting: tuple[Step, ...]
    lowering: Lowering
    rejected: tuple[Lowering, ...]
    target: Target

    @property
    def cost(self) -> Cost:
        """Estimated cost of the chosen way."""
        return self.lowering.cost

    @property
    def summary(self) -> str:
        """The chosen way in a line."""
        cost = self.cost
        return (
            f"{self.lowering.primitive}: {_si(cost.flops)} multiply-adds, "
            f"{_si(cost.bytes)}B moved, {_si(cost.peak)} elements held, "
            f"about {cost.seconds * 1e3:.2g} ms"
        )

    def __str__(self) -> str:
        lines = [f"Plan {self.network.equation()} -> {list(self.network.shape)}"]
        lines += [f"  rewrite  {step.rule}" for step in self.rewriting]
        lines.append(f"  chosen   {self.summary}")
        lines += [f"           {step}" for step in self.lowering.steps]
        lines += [
            f"  rejected {other.primitive}: about {other.cost.seconds * 1e3:.2g} ms, "
            f"{_si(other.cost.peak)} elements held"
            for other in self.rejected
        ]
        return "\n".join(lines)

    __repr__ = __str__

    def run(
        self,
        tensors: Tensors,
        scale: float = 1.0,
        out: Tensor | None = None,
        accumulate: bool = True,
    ) -> Tensor:
        """Evaluate on tensors, by operand name.

        Args:
            tensors: The operands' tensors.
            scale: Factor of the result.
            out: Where to write the result; it must not share memory with an operand.
            accumulate: Whether to add to ``out`` rather than to replace it.

        Returns:
            The scaled result, or ``out``.
        """
        lowering = self.lowering
        if out is None and lowering.view is None and is_traced(tensors.values()):
            # the cheapest way that can be differentiated, if there is one
            ways = (way for way in self.rejected if way.view is not None)
            lowering = next(ways, lowering)
        if out is None and lowering.view is not None:
            result = lowering.view(tensors)
            return result if scale == 1.0 else result * scale
        if out is None:
            like = next(iter(tensors.values()))
            out, accumulate = empty(self.network.shape, like), False
        if not out.shape or out.stride(-1) == 1 or out.shape[-1] == 1:
            lowering.run(tensors, Sink(out, scale, fresh=not accumulate))
        else:  # matrix products write rows
            result = self.run(tensors, scale)
            out.add_(result) if accumulate else out.copy_(result)
        return out


def _si(number: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if abs(number) < 1000:
            return (
                f"{number:.3g} {unit}".rstrip() if not unit else f"{number:.3g} {unit}"
            )
        number /= 1000
    return f"{number:.3g} P"


def plan(
    network: TensorNetwork, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Plan:
    """Choose how to evaluate a network; cached.

    Args:
        network: What to evaluate.
        dtype: Type in which to compute.
        device: Device type, e.g. ``"cpu"`` or ``"cuda"``.

    Returns:
        The cheapest plan that fits into the memory budget (see
        :func:`~tn_extensions.memory_budget`); if none does, the leanest.
    """
    return _plan(network, dtype.itemsize, device, current_budget())


def register(primitive: Primitive) -> Primitive:
    """Let plans use one more primitive, from now on, if it is the cheapest.

    Args:
        primitive: Yields its ways of evaluating a simplified network, its patterns
            joined or not; nothing if the network's structure is not what it knows.

    Returns:
        The primitive, so that this is a decorator.
    """
    if primitive not in _registered:
        _registered.append(primitive)
        forget_plans()
    return primitive


def unregister(primitive: Primitive) -> None:
    """Take back :func:`register`."""
    if primitive in _registered:
        _registered.remove(primitive)
        forget_plans()


_registered: list[Primitive] = []


def forget_plans() -> None:
    """Plan anew from now on, since the constants have changed."""
    _plan.cache_clear()
    _cheapest.cache_clear()


@lru_cache(maxsize=4096)
def _plan(network: TensorNetwork, itemsize: int, device: str, budget: int) -> Plan:
    target = Target(rates(device), itemsize, budget)
    simplified, trace = simplify(network, trace=True)
    native = list(_native_ways(network, target))
    ways = sorted([*native, *_ways(simplified, target)], key=_preference(target))
    if is_plain_convolution(network):
        # whatever it costs here: torch knows how to transform its own kernels
        ways.sort(key=lambda way: way not in native)
    return Plan(network, trace, ways[0], tuple(ways[1:]), target)


_FIRST_TOUCH = 4e10
"""Bytes per second at which held memory becomes usable, fresh or not, on average."""


def _preference(target: Target) -> Callable[[Lowering], tuple[float, float]]:
    """What fits the budget, then what is fast and, at about one speed, lean."""

    def key(lowering: Lowering) -> tuple[float, float]:
        held = lowering.cost.peak * target.itemsize
        seconds = lowering.cost.seconds + held / _FIRST_TOUCH
        return max(held - target.budget, 0), seconds

    return key


def _ways(network: TensorNetwork, target: Target) -> Iterator[Lowering]:
    """All ways of evaluating a network and its variants with patterns paired."""
    for variant in _variants(network):
        for primitive in (*PRIMITIVES, *_registered):
            yield from primitive(variant, target)
        for composite in COMPOSITES:
            yield from composite(variant, target, _cheapest)


def _native_ways(network: TensorNetwork, target: Target) -> Iterator[Lowering]:
    """Ways of evaluating a network as it was defined, before it is simplified."""
    for primitive in NATIVE:
        yield from primitive(network, target)
    for composite in HALVES:
        yield from composite(network, target, _cheapest)


@lru_cache(maxsize=4096)
def _cheapest(network: TensorNetwork, target: Target) -> Lowering:
    """The best way of evaluating a part of a network to a tensor."""
    ways = [*_native_ways(network, target), *_ways(simplify(network), target)]
    return min(ways, key=_preference(target)).with_value(network.shape)


def _variants(network: TensorNetwork) -> Iterator[TensorNetwork]:
    """The network with each subset of the possible pairs joined."""
    indices = pairable(network)
    for joined in product((False, True), repeat=len(indices)):
        variant: TensorNetwork | None = network
        for index in compress(indices, joined):
            # patterns that share two indices are joined over one of them only
            variant = variant and pair(variant, index)
        if variant is not None:
            yield variant
