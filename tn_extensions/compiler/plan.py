"""Plans: which primitive evaluates a network, why, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import compress, product
from math import ceil

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
from tn_extensions.compiler.shortlists import CLOSE, Shortlists, Source, varying_indices
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
        target: Device constants, element size and memory budget.
        others: Lists the other ways, cheapest first.
    """

    network: TensorNetwork
    rewriting: tuple[Step, ...]
    lowering: Lowering
    target: Target
    others: Callable[[], list[Lowering]]

    @cached_property
    def rejected(self) -> tuple[Lowering, ...]:
        """The other ways, cheapest first; listed when they are asked for."""
        return tuple(self.others())

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
        :func:`~tn_extensions.memory_budget`); if none does, the cheapest of those that
        need the smallest multiple of it.
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
    _shortlists.clear()


@lru_cache(maxsize=4096)
def _plan(network: TensorNetwork, itemsize: int, device: str, budget: int) -> Plan:
    target = Target(rates(device), itemsize, budget, varying_indices(network))
    simplified, trace = simplify(network, trace=True)
    if is_plain_convolution(network):
        # whatever it costs here: torch knows how to transform its own kernels
        best = min(_native_ways(network, target), key=_preference(target))
    else:
        best = _best(network, simplified, target)

    def others() -> list[Lowering]:
        native = list(_native_ways(network, target))
        ways = sorted([*native, *_ways(simplified, target)], key=_preference(target))
        ways.remove(next(way for way in ways if way.describes(best)))
        if is_plain_convolution(network):
            ways.sort(key=lambda way: way not in native)
        return ways

    return Plan(network, trace, best, target, others)


@lru_cache(maxsize=4096)
def _cheapest(network: TensorNetwork, target: Target) -> Lowering:
    """The best way of evaluating a part of a network to a tensor."""
    best = _best(network, simplify(network), target)
    return best.with_value(network.shape)


_shortlists = Shortlists()


def _best(
    network: TensorNetwork, simplified: TensorNetwork, target: Target
) -> Lowering:
    """The best way of evaluating a network, defined and simplified.

    Of those that were worth pricing for a network of about the same sizes, if one of
    them fits into the budget; else of all.
    """
    preference = _preference(target)
    shortlist = _shortlists.find(network, target)
    if shortlist:
        ways = (way for _, way in _candidates(network, simplified, target, shortlist))
        best = min(ways, key=preference, default=None)
        if best is not None and preference(best)[0] == 0:
            return best
    found = list(_candidates(network, simplified, target))
    best = min((way for _, way in found), key=preference)
    excess, seconds = preference(best)
    if not shortlist:
        limit = (excess, CLOSE * seconds)
        worth = {source for source, way in found if preference(way) <= limit}
        _shortlists.add(network, target, worth)
    return best


_FIRST_TOUCH = 4e10
"""Bytes per second at which held memory becomes usable, fresh or not, on average."""


def _preference(target: Target) -> Callable[[Lowering], tuple[float, float]]:
    """Rank by fit into the budget, then by speed and, at about one speed, by memory.

    Of what does not fit, what holds most budgets less: a few bytes are not worth being
    many times slower.
    """

    def key(lowering: Lowering) -> tuple[float, float]:
        held = lowering.cost.peak * target.itemsize
        seconds = lowering.cost.seconds + held / _FIRST_TOUCH
        return max(ceil(held / target.budget) - 1, 0), seconds

    return key


def _candidates(
    network: TensorNetwork,
    simplified: TensorNetwork,
    target: Target,
    wanted: frozenset[Source] | None = None,
) -> Iterator[tuple[Source, Lowering]]:
    """Ways of evaluating a network, and where they come from; all, or the wanted."""
    yield from _of_variant(network, None, target, wanted)
    for joined in _subsets(simplified):
        yield from _of_variant(simplified, joined, target, wanted)


def _of_variant(
    network: TensorNetwork,
    joined: tuple[str, ...] | None,
    target: Target,
    wanted: frozenset[Source] | None = None,
) -> Iterator[tuple[Source, Lowering]]:
    """Ways of evaluating a network as it was defined (None), or joined over indices."""
    simple = NATIVE if joined is None else (*PRIMITIVES, *_registered)
    composites = HALVES if joined is None else COMPOSITES
    sources = [(joined, number) for number in range(len(simple) + len(composites))]
    if wanted is not None:
        sources = [source for source in sources if source in wanted]
    variant: TensorNetwork | None = network
    for index in (joined or ()) if sources else ():
        # patterns that share two indices are joined over one of them only
        variant = variant and pair(variant, index)
    if variant is None:
        return
    for source in sources:
        number = source[1]
        if number < len(simple):
            ways = simple[number](variant, target)
        else:
            ways = composites[number - len(simple)](variant, target, _cheapest)
        for way in ways:
            yield source, way


def _ways(network: TensorNetwork, target: Target) -> Iterator[Lowering]:
    """All ways of evaluating a network and its variants with patterns paired."""
    for joined in _subsets(network):
        for _, way in _of_variant(network, joined, target):
            yield way


def _native_ways(network: TensorNetwork, target: Target) -> Iterator[Lowering]:
    """Ways of evaluating a network as it was defined, before it is simplified."""
    for _, way in _of_variant(network, None, target):
        yield way


def _subsets(network: TensorNetwork) -> Iterator[tuple[str, ...]]:
    """Each subset of the indices over which patterns can be joined."""
    indices = pairable(network)
    for joined in product((False, True), repeat=len(indices)):
        yield tuple(compress(indices, joined))
