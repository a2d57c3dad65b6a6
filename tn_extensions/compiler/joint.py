"""Joint plans: several networks of the same operands, and the parts they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from math import ceil, prod

import torch
from torch import Tensor

from tn_extensions.compiler.budget import current_budget
from tn_extensions.compiler.candidate import Tensors
from tn_extensions.compiler.cost import rates
from tn_extensions.compiler.half import Half
from tn_extensions.compiler.measure import MEASURING, can_measure, measure
from tn_extensions.compiler.plan import plan, to_forget
from tn_extensions.compiler.planning import Mode, current_mode
from tn_extensions.compiler.sharing import Cuts, Sharing, member
from tn_extensions.compiler.table import aligned, in_a_line, milli, ruled
from tn_extensions.compiler.tracing import is_traced
from tn_extensions.compiler.wisdom import find, key_of, record
from tn_extensions.network import TensorNetwork
from tn_extensions.recognise import recognise

Row = tuple[str, str, str, str]

_APART = "each on its own"

_WORTH = 1.1
"""Least factor by which a common part must save time, by estimate.

It is above one because estimates are not exact.
"""

_MEASURED = 3
"""Number of sharings that are measured, the best by estimate."""


class JointPlan:
    """A plan for several networks: each on its own, or some from a common part.

    The sharing that saves the most time is chosen, as estimated or measured. The
    remaining networks are planned in the same way.

    Args:
        networks: The networks, of the same operands; no two are equal.
        dtype: Data type in which to compute.
        device: Device type.
        budget: Bytes that may be held beyond inputs and outputs.
        mode: Mode of planning. ``"measure"`` measures at the first run, unless
            measurements are remembered.

    Attributes:
        networks: The networks.
        plans: A plan for each network on its own.
        sharings: The possible sharings, the fastest by estimate first.
        measured: Measured seconds by title.
    """

    def __init__(
        self,
        networks: Sequence[TensorNetwork],
        dtype: torch.dtype,
        device: str,
        budget: int,
        mode: Mode,
    ) -> None:
        self.networks, self._dtype, self._device = tuple(networks), dtype, device
        self._budget = budget
        self.plans = tuple(plan(one, dtype, device, budget) for one in networks)
        worth = filter(None, map(self._worth, self._sharings()))
        self.sharings = tuple(sorted(worth, key=self.seconds))
        keys = (key_of(one, dtype.itemsize, budget) for one in networks)
        self._key = "+".join(keys)
        self.measured: Mapping[str, float] = find(self._key, device)
        self._chosen = self._fastest()
        known = bool(self.measured) or not self.sharings
        self._is_settled = known or mode == "estimate"

    @property
    def sharing(self) -> Sharing | None:
        """The chosen sharing; None if each network is evaluated on its own."""
        return self._chosen

    def seconds(self, sharing: Sharing | None = None) -> float:
        """Estimate the time of all networks with a sharing, or each on its own."""
        members = {} if sharing is None else sharing.members
        shared = sum(map(sharing.seconds, (None, *members))) if sharing else 0.0
        others = (p for k, p in enumerate(self.plans) if k not in members)
        return shared + sum(own.cost.seconds for own in others)

    def _gain(self, sharing: Sharing) -> float:
        """Estimate how many times faster a sharing is than its members' own plans."""
        apart = sum(self.plans[k].cost.seconds for k in sharing.members)
        together = sum(map(sharing.seconds, (None, *sharing.members)))
        return apart / max(together, 1e-12)

    def run(self, tensors: Tensors) -> list[Tensor]:
        """Evaluate all networks on tensors, which are given by operand name."""
        if is_traced(tensors.values()):
            return self._execute(None, tensors)
        if not self._is_settled:
            self._measure(tensors)
        return self._execute(self._chosen, tensors)

    def _execute(self, sharing: Sharing | None, tensors: Tensors) -> list[Tensor]:
        if sharing is None:
            return [own.run(Cuts(own.network).operands(tensors)) for own in self.plans]
        results = sharing.run(tensors)
        others = [k for k in range(len(self.networks)) if k not in results]
        found = self._rest(sharing).run(tensors) if others else []
        results |= dict(zip(others, found, strict=True))
        return [results[number] for number in range(len(self.networks))]

    def _rest(self, sharing: Sharing) -> JointPlan:
        """Plan the networks that are not members of a sharing."""
        others = (n for k, n in enumerate(self.networks) if k not in sharing.members)
        return joint_plan(tuple(others), self._dtype, self._device, self._budget)

    def _measure(self, tensors: Tensors) -> None:
        """Measure the best choices by estimate, and use the fastest from now on."""
        like = next(iter(tensors.values()))
        if not can_measure(like):
            return
        with MEASURING, torch.no_grad():
            if self._is_settled:
                return
            best = (None, *self.sharings[:_MEASURED])
            calls = {_title(one): partial(self._execute, one, tensors) for one in best}
            self.measured = measure(calls, like.device)
            if self.measured:
                entry = {
                    "network": "; ".join(map(in_a_line, self.networks)),
                    "itemsize": self._dtype.itemsize,
                    "budget": self._budget,
                    "seconds": dict(self.measured),
                }
                record(self._key, entry, self._device)
                self._chosen = self._fastest()
            self._is_settled = True

    def _fastest(self) -> Sharing | None:
        """Choose the fastest sharing, as measured or by estimate."""
        by_title = {_title(one): one for one in (None, *self.sharings)}
        known = [title for title in self.measured if title in by_title]
        if known:
            return by_title[min(known, key=self.measured.__getitem__)]
        worth = (one for one in self.sharings if self._gain(one) > _WORTH)
        return next(worth, None)

    # -- possible sharings

    def _sharings(self) -> Iterator[Sharing]:
        """Yield sharings of parts within the budget, each as a whole and in chunks."""
        for part in _parts(self.networks):
            at_once = self._members(part)
            if len(at_once) < 2:
                continue
            is_wanted = part in self.networks
            budget = self._budget if is_wanted else self._budget // 2
            planner = partial(
                plan, dtype=self._dtype, device=self._device, budget=budget
            )
            fits = (self._budget - budget) // self._dtype.itemsize
            if is_wanted or prod(part.shape) <= fits:
                yield Sharing(Cuts(part), 1, at_once, planner)
            cuts, members = self._cut(part)
            if is_wanted or cuts is None:
                continue
            total, elements = cuts.chunks.total, max(prod(part.shape), 1)
            cached = int(rates(self._device).cache) // (2 * self._dtype.itemsize)
            sizes = {min(total, limit * total // elements) for limit in (fits, cached)}
            for size in sizes - {0, total}:
                balanced = ceil(total / ceil(total / size))
                yield Sharing(cuts, balanced, members, planner)

    def _members(self, part: TensorNetwork, index: str = "") -> dict[int, Cuts]:
        found = (member(one, part, index) for one in self.networks)
        return {k: one for k, one in enumerate(found) if one is not None}

    def _cut(self, part: TensorNetwork) -> tuple[Cuts | None, dict[int, Cuts]]:
        """Cut a part along the index that allows most networks to be cut along it."""
        found = [
            (cuts, self._members(part, index))
            for index in part.output_indices
            if part.sizes[index] > 1 and (cuts := Cuts.along(part, index)) is not None
        ]
        best = max((len(members) for _, members in found), default=0)
        usable = (one for one in found if len(one[1]) == best > 1)
        return next(usable, (None, {}))

    def _worth(self, sharing: Sharing) -> Sharing | None:
        """Drop the members that are faster on their own.

        Return None if fewer than two are left, or if they do not fit into the budget.
        """
        kept = {
            number: one
            for number, one in sharing.members.items()
            if sharing.seconds(number) < self.plans[number].cost.seconds
        }
        fits = sharing.peak * self._dtype.itemsize <= self._budget
        return sharing.of(kept) if len(kept) > 1 and fits else None

    # -- text

    def __str__(self) -> str:
        chosen = self._chosen
        totals = [
            ("chosen", _title(chosen)),
            ("estimated", f"{milli(self.seconds(chosen))} ms"),
        ]
        if _title(chosen) in self.measured:
            totals.append(("measured", f"{milli(self.measured[_title(chosen)])} ms"))
        names = (recognise(one) or "a network" for one in self.networks)
        head = ("network", "candidate", "times", "estimated ms")
        parts = [
            f"Joint plan of {', '.join(names)}",
            *aligned(totals, indent=2),
            *ruled(head, list(self._rows()), text_columns=2),
        ]
        others = [one for one in (None, *self.sharings) if one is not chosen]
        if others:
            reasons = [(_title(one), self._reason(one)) for one in others]
            parts += ["rejected", *aligned(reasons, indent=2)]
        return "\n".join(parts)

    __repr__ = __str__

    def _rows(self) -> Iterator[Row]:
        sharing = self._chosen
        if sharing is None:
            for own in self.plans:
                yield _row(
                    in_a_line(own.network), own.candidate.name, 1, own.cost.seconds
                )
            return
        part, members = sharing.plans(sharing.size)
        number = sharing.number
        yield _row(sharing.title, part.candidate.name, number, sharing.seconds(None))
        for k in sharing.members:
            how = "the same" if sharing.is_part(k) else members[k].candidate.name
            yield _row(in_a_line(self.networks[k]), how, number, sharing.seconds(k))
        if len(sharing.members) < len(self.networks):
            yield from self._rest(sharing)._rows()

    def _reason(self, other: Sharing | None) -> str:
        first, second, source = self.seconds(self._chosen), self.seconds(other), ""
        titles = _title(self._chosen), _title(other)
        if {*titles} <= self.measured.keys():
            first, second = (self.measured[title] for title in titles)
            source = ", measured"
        return f"slower by a factor of {second / max(first, 1e-12):.3g}{source}"


def _title(sharing: Sharing | None) -> str:
    return _APART if sharing is None else sharing.title


def _row(network: str, candidate: str, times: int, seconds: float) -> Row:
    return network, candidate, str(times), milli(seconds)


def _parts(networks: Sequence[TensorNetwork]) -> list[TensorNetwork]:
    """List possible common parts: the networks, and halves of mirrored ones.

    If some differ only in their axes, list the first of them.
    """
    order = list(dict.fromkeys(j for one in networks for j in one.output_indices))
    found = list(networks)
    for network in networks:
        half = Half.of(network)
        if half is not None and not half.dims:
            kept = {*half.batch, *half.columns, *half.rows}
            axes = [j for j in (*order, *half.shared) if j in kept]
            found.append(half.network(*((j,) for j in dict.fromkeys(axes))))
    distinct: dict[object, TensorNetwork] = {}
    for part in found:
        # an unchanged tensor need not be shared
        if len(part.nodes) > 1 or part.summed_indices:
            distinct.setdefault((part.nodes, frozenset(part.output_indices)), part)
    return list(distinct.values())


def joint_plan(
    networks: Sequence[TensorNetwork],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    budget: int | None = None,
) -> JointPlan:
    """Choose how to evaluate several networks of the same operands; cached.

    Args:
        networks: The networks; no two are equal.
        dtype: Data type in which to compute.
        device: Device type, e.g. ``"cpu"`` or ``"cuda"``.
        budget: Memory budget in bytes (default: the budget in force).

    Returns:
        The joint plan, chosen by the rules of :func:`~tn_extensions.compiler.plan`.
    """
    limits = budget or current_budget(), current_mode(), torch.get_num_threads()
    return _joint_plan(tuple(networks), dtype, device, *limits)


@lru_cache(maxsize=1024)
def _joint_plan(
    networks: tuple[TensorNetwork, ...],
    dtype: torch.dtype,
    device: str,
    budget: int,
    mode: Mode,
    threads: int,  # measurements depend on it
) -> JointPlan:
    return JointPlan(networks, dtype, device, budget, mode)


to_forget.append(_joint_plan.cache_clear)
