"""Plans: which candidate evaluates a network, why, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import compress, product
from math import ceil

import torch
from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.allocate import empty
from tn_extensions.compiler.budget import current_budget
from tn_extensions.compiler.candidate import Candidate, Primitive, Target, Tensors
from tn_extensions.compiler.cost import Cost, rates
from tn_extensions.compiler.primitives import PRIMITIVES
from tn_extensions.compiler.shortlists import CLOSE, Shortlists, Source, varying_indices
from tn_extensions.compiler.tracing import is_traced
from tn_extensions.network import Step, TensorNetwork, simplify
from tn_extensions.network.rules import pair, pairable


@dataclass(frozen=True)
class Plan:
    """How a network is evaluated.

    Args:
        network: What was asked for.
        rewriting: The simplifications that came first.
        candidate: The chosen way.
        target: Device constants, element size and memory budget.
        others: Lists the other ways, cheapest first.
    """

    network: TensorNetwork
    rewriting: tuple[Step, ...]
    candidate: Candidate
    target: Target
    others: Callable[[], list[Candidate]]

    @cached_property
    def rejected(self) -> tuple[Candidate, ...]:
        """The other ways, cheapest first; listed when they are asked for."""
        return tuple(self.others())

    @property
    def cost(self) -> Cost:
        """Estimated cost of the chosen way."""
        return self.candidate.cost

    @property
    def summary(self) -> str:
        """The chosen way in a line."""
        cost = self.cost
        return (
            f"{self.candidate.name}: {_si(cost.flops)} multiply-adds, "
            f"{_si(cost.bytes)}B moved, {_si(cost.peak)} elements held, "
            f"about {cost.seconds * 1e3:.2g} ms"
        )

    def __str__(self) -> str:
        lines = [f"Plan {self.network.equation()} -> {list(self.network.shape)}"]
        lines += [f"  rewrite  {step.rule}" for step in self.rewriting]
        lines.append(f"  chosen   {self.summary}")
        lines += [
            f"           {step.name} {step.shapes}"
            for step in self.candidate.operations
        ]
        lines += [
            f"  rejected {other.name}: about {other.cost.seconds * 1e3:.2g} ms, "
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
        candidate = self.candidate
        if out is None and candidate.compute is None and is_traced(tensors.values()):
            # the cheapest way that can be differentiated, if there is one
            ways = (way for way in self.rejected if way.compute is not None)
            candidate = next(ways, candidate)
        if out is None and candidate.compute is not None:
            result = candidate.compute(tensors)
            return result if scale == 1.0 else result * scale
        if out is None:
            like = next(iter(tensors.values()))
            out, accumulate = empty(self.network.shape, like), False
        if not out.shape or out.stride(-1) == 1 or out.shape[-1] == 1:
            candidate.run(tensors, Accumulator(out, scale, fresh=not accumulate))
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


def candidates(network: TensorNetwork, target: Target) -> list[Candidate]:
    """List all candidates for a network, each once."""
    found = (one for _, one in _candidates(network, simplify(network), target))
    return list({one.label: one for one in found}.values())


@lru_cache(maxsize=4096)
def _plan(network: TensorNetwork, itemsize: int, device: str, budget: int) -> Plan:
    varying = varying_indices(network)
    target = Target(rates(device), itemsize, budget, _cheapest, varying)
    simplified, trace = simplify(network, trace=True)
    best = _best(network, simplified, target)

    def others() -> list[Candidate]:
        found = candidates(network, target)
        return sorted(
            (one for one in found if one.label != best.label), key=_preference(target)
        )

    return Plan(network, trace, best, target, others)


@lru_cache(maxsize=4096)
def _cheapest(network: TensorNetwork, target: Target) -> Candidate:
    """Choose the cheapest candidate for a part of a network, to a tensor."""
    best = _best(network, simplify(network), target)
    return best.with_value(network.shape)


_shortlists = Shortlists()


def _best(
    network: TensorNetwork, simplified: TensorNetwork, target: Target
) -> Candidate:
    """Choose the cheapest candidate for a network, defined and simplified.

    Of those that were worth pricing for a network of about the same sizes, if one of
    them fits into the budget; else of all.
    """
    preference = _preference(target)
    shortlist = _shortlists.find(network, target)
    if shortlist:
        found = (one for _, one in _candidates(network, simplified, target, shortlist))
        best = min(found, key=preference, default=None)
        if best is not None and preference(best)[0] == 0:
            return best
    priced = list(_candidates(network, simplified, target))
    best = min((one for _, one in priced), key=preference)
    excess, seconds = preference(best)
    if not shortlist:
        limit = (excess, CLOSE * seconds)
        worth = {source for source, one in priced if preference(one) <= limit}
        _shortlists.add(network, target, worth)
    return best


_FIRST_TOUCH = 4e10
"""Bytes per second at which held memory becomes usable, fresh or not, on average."""


def _preference(target: Target) -> Callable[[Candidate], tuple[float, float]]:
    """Rank by fit into the budget, then by speed and, at about one speed, by memory.

    Of what does not fit, what holds most budgets less: a few bytes are not worth being
    many times slower.
    """

    def key(candidate: Candidate) -> tuple[float, float]:
        held = candidate.peak * target.itemsize
        seconds = candidate.cost.seconds + held / _FIRST_TOUCH
        return max(ceil(held / target.budget) - 1, 0), seconds

    return key


def _candidates(
    network: TensorNetwork,
    simplified: TensorNetwork,
    target: Target,
    wanted: frozenset[Source] | None = None,
) -> Iterator[tuple[Source, Candidate]]:
    """Yield candidates, all or of the wanted sources, each with its source."""
    for joined, form in _forms(network, simplified, wanted):
        for number, primitive in enumerate((*PRIMITIVES, *_registered)):
            source = (joined, number)
            if wanted is None or source in wanted:
                for candidate in primitive(form, target):
                    yield source, candidate


def _forms(
    network: TensorNetwork,
    simplified: TensorNetwork,
    wanted: frozenset[Source] | None = None,
) -> Iterator[tuple[tuple[str, ...] | None, TensorNetwork]]:
    """Yield equals of a network to be evaluated.

    As it was defined (None), which is how torch's kernels know it; simplified; and with
    patterns joined over each subset of the indices that allow it.
    """
    if network != simplified:
        yield None, network
    indices = pairable(simplified)
    for chosen in product((False, True), repeat=len(indices)):
        joined = tuple(compress(indices, chosen))
        if wanted is not None and all(source[0] != joined for source in wanted):
            continue
        form: TensorNetwork | None = simplified
        for index in joined:
            # patterns that share two indices are joined over one of them only
            form = form and pair(form, index)
        if form is not None:
            yield joined, form
