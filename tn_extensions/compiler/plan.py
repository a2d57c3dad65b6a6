"""Plans: the candidate that evaluates a network, the reason for it, and its cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import compress, product
from math import ceil
from threading import RLock

import torch
from torch import Tensor

from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.allocate import empty
from tn_extensions.compiler.budget import current_budget
from tn_extensions.compiler.candidate import (
    Candidate,
    Primitive,
    Target,
    Tensors,
    wants_definition,
)
from tn_extensions.compiler.cost import Cost, rates
from tn_extensions.compiler.measure import MEASURING, can_measure, measure
from tn_extensions.compiler.planning import Mode, current_mode
from tn_extensions.compiler.primitives import PRIMITIVES, SELECTING
from tn_extensions.compiler.shortlists import CLOSE, Shortlists, Source, varying_indices
from tn_extensions.compiler.table import in_a_line, mebi, milli, plan_table
from tn_extensions.compiler.tracing import is_traced
from tn_extensions.compiler.wisdom import find, key_of, record
from tn_extensions.errors import describe
from tn_extensions.network import TensorNetwork, simplify
from tn_extensions.network.rules import pair, pairable
from tn_extensions.network.text import si


class Plan:
    """The candidates of a network, and the one that is chosen to evaluate it.

    Args:
        network: The network.
        target: Rates of the device, element size and memory budget.
        device: Device type.
        mode: Mode of planning. ``"measure"`` measures candidates at the first run,
            unless measurements are remembered.

    Attributes:
        network: The network, as it was defined.
        rewriting: The steps of its simplification.
        target: Rates of the device, element size and memory budget.
        estimated: The cheapest candidate by estimate.
        measured: Measured seconds of candidates, by label.
    """

    def __init__(
        self, network: TensorNetwork, target: Target, device: str, mode: Mode
    ) -> None:
        _check_strides(network)
        self.network, self.target, self._device = network, target, device
        self._simplified, self.rewriting = simplify(network, trace=True)
        self.estimated = _best(network, self._simplified, target)
        self._key = key_of(network, target.itemsize, target.budget)
        self.measured: Mapping[str, float] = find(self._key, device)
        self._candidate = self._fastest()
        self._is_settled = bool(self.measured) or mode == "estimate"
        self._differentiable: Candidate | None = None

    @property
    def candidate(self) -> Candidate:
        """The chosen candidate; before a measurement, the cheapest by estimate."""
        return self._candidate

    @property
    def rejected(self) -> tuple[Candidate, ...]:
        """The other candidates, cheapest first; computed at each access."""
        found = candidates(self.network, self.target)
        others = (one for one in found if one.label != self.candidate.label)
        return tuple(sorted(others, key=_preference(self.target)))

    @property
    def cost(self) -> Cost:
        """Estimated cost of the chosen candidate."""
        return self.candidate.cost

    @property
    def summary(self) -> str:
        """The chosen candidate in one line."""
        cost, itemsize = self.cost, self.target.itemsize
        return (
            f"{self.candidate.name}: {si(cost.flops)} multiply-adds, "
            f"{mebi(cost.bytes)} MiB moved, {mebi(cost.peak * itemsize)} MiB held, "
            f"about {milli(cost.seconds)} ms"
        )

    def __str__(self) -> str:
        return plan_table(
            self.network,
            self.rewriting,
            self.candidate,
            self.target,
            self.rejected,
            self.measured,
        )

    __repr__ = __str__

    def run(
        self,
        tensors: Tensors,
        scale: float = 1.0,
        out: Tensor | None = None,
        accumulate: bool = True,
    ) -> Tensor:
        """Evaluate the network on tensors.

        Args:
            tensors: Tensors by operand name.
            scale: Factor of the result.
            out: Tensor to write the result to; it must not share memory with operands.
            accumulate: Whether to add to ``out`` instead of replacing its entries.

        Returns:
            ``out``, or a new tensor without one.
        """
        traced = is_traced(tensors.values())
        if not self._is_settled and not traced:
            self._measure(tensors, out)
        for listen in tuple(listeners):
            listen(self)
        candidate = self._candidate
        if traced and out is None and not candidate.is_differentiable:
            candidate = self._cheapest_differentiable()
        return self._execute(candidate, tensors, scale, out, accumulate)

    def _execute(
        self,
        candidate: Candidate,
        tensors: Tensors,
        scale: float,
        out: Tensor | None,
        accumulate: bool,
    ) -> Tensor:
        if out is None and candidate.compute is not None:
            result = candidate.compute(tensors)
            return result if scale == 1.0 else result * scale
        if out is None:
            like = next(iter(tensors.values()))
            out, accumulate = empty(self.network.shape, like), False
        if not out.shape or out.stride(-1) == 1 or out.shape[-1] == 1:
            candidate.run(tensors, Accumulator(out, scale, fresh=not accumulate))
        else:  # matrix products can only write contiguous rows
            result = self._execute(candidate, tensors, scale, None, False)
            out.add_(result) if accumulate else out.copy_(result)
        return out

    def _cheapest_differentiable(self) -> Candidate:
        """Choose the cheapest candidate that can be recorded, if there is one."""
        if self._differentiable is None:
            others = (one for one in self.rejected if one.is_differentiable)
            self._differentiable = next(others, self._candidate)
        return self._differentiable

    def _measure(self, tensors: Tensors, out: Tensor | None) -> None:
        """Measure the best candidates by estimate, and use the fastest from now on."""
        like = next(iter(tensors.values()))
        if not can_measure(like):
            return
        with MEASURING:
            if self._is_settled:
                return
            scratch = None if out is None else torch.empty_like(out)
            ranked = self._ranked()
            calls = {
                one.label: partial(self._execute, one, tensors, 1.0, scratch, False)
                for one in ranked
            }
            worth = self._number_worth_measuring(ranked)
            with torch.no_grad():
                while len(calls) > 1 and not self.measured:  # more, if all raised
                    some = {label: calls.pop(label) for label in [*calls][:worth]}
                    self.measured = measure(some, like.device)
            if self.measured:
                entry = {
                    "network": in_a_line(self.network),
                    "itemsize": self.target.itemsize,
                    "budget": self.target.budget,
                    "seconds": dict(self.measured),
                }
                record(self._key, entry, self._device)
                self._candidate = self._fastest()
            self._is_settled = True

    def _ranked(self) -> list[Candidate]:
        """List the candidates within the budget, the cheapest by estimate first."""
        preference = _preference(self.target)
        found = sorted((self.candidate, *self.rejected), key=preference)
        return [one for one in found if preference(one)[0] == 0]

    def _number_worth_measuring(self, ranked: Sequence[Candidate]) -> int:
        """Count the candidates that are not much slower by estimate; at least a few."""
        seconds = [_preference(self.target)(one)[1] for one in ranked]
        close = [one for one in seconds if one <= _WORTH_MEASURING * seconds[0]]
        return min(max(len(close), _LEAST_MEASURED), _MOST_MEASURED)

    def _fastest(self) -> Candidate:
        """Choose the fastest candidate as measured; without measurements, estimated."""
        if not self.measured:
            return self.estimated
        found = {one.label: one for one in candidates(self.network, self.target)}
        known = [label for label in self.measured if label in found]
        best = min(known, key=self.measured.__getitem__, default=self.estimated.label)
        return found[best]


_WORTH_MEASURING = 4
"""Largest ratio to the cheapest candidate's estimate for a candidate to be measured."""

_LEAST_MEASURED, _MOST_MEASURED = 4, 12


listeners: list[Callable[[Plan], None]] = []
"""Functions that are called with each plan before it runs."""


def plan(
    network: TensorNetwork,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    budget: int | None = None,
) -> Plan:
    """Choose how to evaluate a network; cached.

    The plan uses the fastest candidate that fits into the memory budget (see
    :func:`~tn_extensions.memory_budget`), as measured or estimated (see
    :class:`~tn_extensions.planning`). If none fits, it uses the cheapest of the
    candidates that exceed the budget by the smallest factor, rounded up.

    Args:
        network: The network.
        dtype: Data type in which to compute.
        device: Device type, e.g. ``"cpu"`` or ``"cuda"``.
        budget: Memory budget in bytes (default: the budget in force).

    Returns:
        The plan.

    Raises:
        ValueError: If the network reads a tensor backwards: if a stride is below 1.
    """
    threads = torch.get_num_threads()
    budget, mode = budget or current_budget(), current_mode()
    with _PLANNING:
        return _plan(network, dtype.itemsize, device, budget, mode, threads)


def _check_strides(network: TensorNetwork) -> None:
    """Refuse strides that no primitive expects."""
    positions = [axis.position for one in network.operands for axis in one.axes]
    patterns = [*network.patterns]
    for joined in network.pairs:
        patterns += joined.first, joined.second
    positions += [pattern.position for pattern in patterns]
    for position in positions:
        for index, stride in position.terms:
            if stride < 1:
                rule, value = "have strides of at least 1", f"{stride} for {index!r}"
                remedy = "To read a tensor backwards, flip it" if stride < 0 else ""
                raise ValueError(describe("plan", "network", rule, value, remedy))


_PLANNING = RLock()
"""Held while a network is planned, so that all threads get the same plan."""


def register(primitive: Primitive) -> Primitive:
    """Register a primitive, whose candidates all plans consider from now on.

    Args:
        primitive: Yields candidates for a simplified network, in which patterns may
            have been paired; none if the network's structure does not match.

    Returns:
        The primitive, so that this function can be used as a decorator.
    """
    if primitive not in _registered:
        _registered.append(primitive)
        forget_plans()
    return primitive


def unregister(primitive: Primitive) -> None:
    """Undo :func:`register`."""
    if primitive in _registered:
        _registered.remove(primitive)
        forget_plans()


_registered: list[Primitive] = []


def forget_plans() -> None:
    """Drop all cached plans, after a change of what they depend on."""
    _plan.cache_clear()
    _cheapest.cache_clear()
    _shortlists.clear()
    for forget in to_forget:
        forget()


to_forget: list[Callable[[], None]] = []
"""Functions that are called when plans are dropped, to drop what depends on them."""


def candidates(network: TensorNetwork, target: Target) -> list[Candidate]:
    """List all candidates for a network, each once."""
    found = (one for _, one in _candidates(network, simplify(network), target))
    return list({one.label: one for one in found}.values())


@lru_cache(maxsize=4096)
def _plan(
    network: TensorNetwork,
    itemsize: int,
    device: str,
    budget: int,
    mode: Mode,
    threads: int,  # measurements depend on it
) -> Plan:
    varying = varying_indices(network)
    target = Target(rates(device), itemsize, budget, _cheapest, varying)
    return Plan(network, target, device, mode)


@lru_cache(maxsize=4096)
def _cheapest(network: TensorNetwork, target: Target) -> Candidate:
    """Choose the cheapest candidate that evaluates a part of a network to a tensor."""
    best = _best(network, simplify(network), target)
    return best.with_value(network.shape)


_shortlists = Shortlists()


def _best(
    network: TensorNetwork, simplified: TensorNetwork, target: Target
) -> Candidate:
    """Choose the cheapest candidate for a network, given as defined and simplified.

    If there is a shortlist from a network of similar sizes, consider only that, unless
    none of it fits into the budget.
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


_REUSED, _FRESH = 4e10, 4e9
"""Bytes per second at which memory becomes usable, if it was used before or is new."""

_AT_HAND = 2**24
"""Bytes that an allocator has at hand. More is returned to the system when it is freed,
and comes back as pages to be cleared."""


def _preference(target: Target) -> Callable[[Candidate], tuple[float, float]]:
    """Rank by fit into the budget, then by time, with a small price for memory.

    Beyond the budget, only whole multiples of it count: a few bytes are not worth being
    many times slower.
    """

    def key(candidate: Candidate) -> tuple[float, float]:
        held = candidate.peak * target.itemsize
        price = held / _REUSED + max(0, held - _AT_HAND) / _FRESH
        seconds = candidate.cost.seconds + price
        return max(ceil(held / target.budget) - 1, 0), seconds

    return key


def _candidates(
    network: TensorNetwork,
    simplified: TensorNetwork,
    target: Target,
    wanted: frozenset[Source] | None = None,
) -> Iterator[tuple[Source, Candidate]]:
    """Yield the candidates, of all or the wanted sources, each with its source."""
    for joined, form in _forms(network, simplified, wanted):
        for number, primitive in enumerate((*PRIMITIVES, *_registered)):
            source = (joined, number)
            fits = wants_definition(primitive) == (joined is None)
            fits = fits and (not form.selections or primitive in SELECTING)
            if fits and (wanted is None or source in wanted):
                for candidate in primitive(form, target):
                    yield source, candidate


def _forms(
    network: TensorNetwork,
    simplified: TensorNetwork,
    wanted: frozenset[Source] | None = None,
) -> Iterator[tuple[tuple[str, ...] | None, TensorNetwork]]:
    """Yield the forms of a network that primitives see, with the indices of pairs.

    First the network as it was defined (None), which shows convolutions; then the
    simplified one, with pairs over each subset of the possible indices.
    """
    yield None, network
    indices = pairable(simplified)
    for chosen in product((False, True), repeat=len(indices)):
        joined = tuple(compress(indices, chosen))
        if wanted is not None and all(source[0] != joined for source in wanted):
            continue
        form: TensorNetwork | None = simplified
        for index in joined:
            # patterns that share two indices can only be paired over one of them
            form = form and pair(form, index)
        if form is not None:
            yield joined, form
