"""Communicate statistics, inverses and preconditioned gradients between processes.

The work is split as in KAISA (Pauloski et al., SC 2021). One process inverts a layer;
layers are assigned by cost. Some of the processes multiply by the layer's inverse, and
send the products to the others. The processes form a grid: a column multiplies by the
inverses of the same layers, and a row exchanges products.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import isclose
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tn_extensions.errors import describe
from tn_extensions.kronecker.factors import dense, is_low_rank
from tn_extensions.optim.layer import Layer
from tn_extensions.optim.options import Distributed
from tn_extensions.optim.state import (
    Outline,
    attach_tensors,
    detach_tensors,
    from_state,
    to_state,
)
from tn_extensions.optim.statistics import RANK_LIMIT, Statistics
from tn_extensions.optim.triangles import pack, unpack

BUCKET_BYTES = 25 * 2**20
Key = tuple[str, str]
"""A layer's name, and a kind of statistics or the name of a parameter in the layer."""
Gradients = Mapping[str, Mapping[str, Tensor]]
"""Gradients by the layer's name and the parameter's name in the layer."""


class Processes:
    """The processes that train together, seen from one of them, with whole parameters.

    Args:
        owner: Name of the caller, for errors.
        layers: The layers by name, the same in all processes.
        options: The processes, and the share that multiplies by a layer's inverse.

    Raises:
        ValueError: If the share is not a divisor of the number of processes, or layers
            differ.
    """

    def __init__(
        self, owner: str, layers: Mapping[str, Layer], options: Distributed
    ) -> None:
        self._owner = owner
        self._layers = layers
        self.group = options.process_group
        is_used = dist.is_initialized()
        self.rank = dist.get_rank(self.group) if is_used else 0
        self.size = dist.get_world_size(self.group) if is_used else 1
        self._workers = self._count_workers(options.grad_worker_fraction)
        self._columns = self.size // self._workers
        self._column = self.rank % self._columns
        first = next(iter(layers.values()))
        self.device = next(iter(first.parameters.values())).device
        costs = [self._load(layer) for layer in layers.values()]
        self._owners = dict(zip(layers, _assignment(costs, self.size), strict=True))
        if self.size > 1:
            self._check_same()
            self._form_groups()

    def inverts(self, name: str) -> bool:
        """Tell whether this process inverts a layer."""
        return self._owners[name] == self.rank

    def multiplies(self, name: str) -> bool:
        """Tell whether this process multiplies by a layer's inverse."""
        return self._owners[name] % self._columns == self._column

    def holds(self, name: str) -> bool:
        """Tell whether this process holds a layer's averages."""
        return True

    @property
    def _has_inverses(self) -> bool:
        """Tell whether each process has an inverse for all averages that it holds."""
        return self._columns == 1

    def _load(self, layer: Layer) -> float:
        """Return the cost of a layer, by which layers are assigned to processes."""
        return _cost(layer)

    # -- statistics

    def all_agree(self, conditions: list[bool]) -> list[bool]:
        """Tell for each condition whether it holds in all processes."""
        return conditions  # gradients and averages are the same everywhere

    def total(self, summand: Tensor) -> Tensor:
        """Sum over the processes, if each has a part of the gradients."""
        return summand

    def average(self, found: Mapping[str, Statistics]) -> dict[str, Statistics]:
        """Average statistics over the processes, for layers that all of them used.

        A layer whose averages this process does not hold gets an empty dictionary.
        """
        if self.size == 1:
            return {name: own for name, own in found.items() if own}
        flat = {
            (name, what): t for name, own in found.items() for what, t in own.items()
        }
        num_rows = {
            key: t.shape[1] if key[1] != "moments" and is_low_rank(t) else 0
            for key, t in flat.items()
        }
        everywhere: list[dict[Key, int]] = self._all_objects(num_rows)
        keys = [key for key in everywhere[0] if all(key in own for own in everywhere)]
        result: dict[str, Statistics] = {name: {} for name, _ in keys}
        dense_ones: dict[Key, Tensor] = {}
        for key in keys:
            rows = [own[key] for own in everywhere]
            tensor, (name, what) = flat[key], key
            if not (all(rows) and sum(rows) <= RANK_LIMIT * tensor.shape[2]):
                dense_ones[key] = tensor
                continue
            gathered = self._gathered(tensor, rows, name)
            if self.holds(name):
                result[name][what] = gathered
        for (name, what), tensor in self._reduced(dense_ones):
            result[name][what] = tensor
        return result

    def _receiver(self, name: str) -> int | None:
        """Return the process that holds a layer's averages; ``None``: all processes."""
        return None

    def _gathered(self, factor: Tensor, rows: list[int], name: str) -> Tensor:
        """Gather rows of all processes if this one holds them; else return its own."""
        factor = factor.mul(self.size**-0.5)
        # numbers of rows may differ: pad with zeros
        padding = (0, 0, 0, max(rows) - factor.shape[1])
        own = torch.nn.functional.pad(factor, padding).contiguous()
        parts = [torch.empty_like(own) for _ in rows] if self.holds(name) else None
        receiver = self._receiver(name)
        if receiver is not None:
            dist.gather(own, parts, self._global_rank(receiver), self.group)
        elif parts is not None:
            dist.all_gather(parts, own, group=self.group)
        if parts is None:
            return factor
        return torch.cat([p[:, :r] for p, r in zip(parts, rows, strict=True)], 1)

    def _reduced(self, tensors: dict[Key, Tensor]) -> Iterator[tuple[Key, Tensor]]:
        """Average over the processes, and yield the averages that this process holds.

        Matrices are sent as triangles, in buckets whose transfers overlap.
        """
        packed = {
            key: own if key[1] == "moments" else pack(dense(own))
            for key, own in tensors.items()
        }
        pending: list[tuple[list[Key], Tensor, Any]] = []
        for keys in self._buckets(packed):
            flat = torch.cat([packed[key].flatten() for key in keys]).div_(self.size)
            receiver = self._receiver(keys[0][0])
            work: Any
            if receiver is None:
                work = dist.all_reduce(flat, group=self.group, async_op=True)
            else:
                receiver = self._global_rank(receiver)
                work = dist.reduce(flat, receiver, group=self.group, async_op=True)
            pending.append((keys, flat, work))
        for keys, flat, work in pending:
            work.wait()
            parts = flat.split([packed[key].numel() for key in keys])
            for key, part in zip(keys, parts, strict=True):
                if self.holds(key[0]):
                    shaped = part.view_as(packed[key])
                    yield key, shaped if key[1] == "moments" else unpack(shaped)

    def _buckets(self, tensors: Mapping[Key, Tensor]) -> Iterator[list[Key]]:
        """Split keys into buckets of tensors with one dtype and the same receivers."""
        kinds = {
            key: (self._receiver(key[0]), own.dtype) for key, own in tensors.items()
        }
        for kind in dict.fromkeys(kinds.values()):
            held: list[Key] = []
            num_bytes = 0
            for key in [own for own in kinds if kinds[own] == kind]:
                if held and num_bytes + tensors[key].nbytes > BUCKET_BYTES:
                    yield held
                    held, num_bytes = [], 0
                held.append(key)
                num_bytes += tensors[key].nbytes
            yield held

    # -- inverses and gradients

    def update_inverses(self, due: Sequence[Layer]) -> None:
        """Invert averages, and send inverses to the processes that multiply by them.

        Args:
            due: The layers to invert, the same in all processes.
        """
        for layer in due:
            layer.is_inverted = True
            if self.inverts(layer.name):
                layer.invert()
        if self.size > 1:
            self._send_inverses(due)

    def _send_inverses(self, layers: Sequence[Layer]) -> None:
        corrected = {
            layer.name for layer in layers if layer.options.eigenvalue_correction
        }
        own = [layer for layer in layers if self.inverts(layer.name)]
        # all processes compute moments of their data, in the same basis
        for everywhere in (True, False) if corrected else (False,):
            states = {
                layer.name: to_state(layer.decomposition)
                for layer in own
                if (layer.name in corrected) == everywhere
            }
            for name, state in self._share(states, everywhere).items():
                self._layers[name].receive(from_state(state))

    def preconditioned(
        self, layers: Mapping[str, Layer]
    ) -> Iterable[tuple[str, Mapping[str, Tensor]]]:
        """Multiply gradients by the inverses.

        Args:
            layers: Layers whose gradients are multiplied.

        Returns:
            The products by layer and parameter; of sharded parameters, this process's
            parts.
        """
        own = (
            (name, layer.preconditioned(layer.gradients))
            for name, layer in layers.items()
            if self.multiplies(name)
        )
        if self._has_inverses:
            return own
        likes = {name: layer.parameters for name, layer in layers.items()}
        return self._share_gradients(dict(own), likes).items()

    def _share(self, states: Mapping[str, Any], everywhere: bool) -> dict[str, Any]:
        """Send states of layers from the processes that own the layers to others.

        Args:
            states: States of the layers that this process owns.
            everywhere: Whether to send to all processes, or only to those that multiply
                by the layer's inverse.

        Returns:
            The states that this process has now, by layer.
        """
        result = dict(states)
        if not (everywhere or self._workers > 1):
            return result
        tensors: list[Tensor] = []
        own = {name: detach_tensors(each, tensors) for name, each in states.items()}
        group = self.group if everywhere else self._column_group
        for source, outlines in enumerate(self._all_objects(own)):
            if everywhere or source % self._columns == self._column:
                arrive = partial(self._broadcast, source, group, iter(tensors))
                result |= attach_tensors(outlines, arrive)
        return result

    def _broadcast(
        self, source: int, group: Any, own: Iterator[Tensor], outline: Outline
    ) -> Tensor:
        """Send the next of this process's tensors, or receive one."""
        if source == self.rank:
            # keep the memory layout: with another one, products round differently
            tensor = next(own)
        else:
            shape, dtype = outline
            tensor = torch.empty(shape, dtype=dtype, device=self.device)
        dist.broadcast(tensor, self._global_rank(source), group=group)
        return tensor

    def _share_gradients(
        self, gradients: Gradients, likes: Gradients
    ) -> dict[str, dict[str, Tensor]]:
        """Exchange preconditioned gradients within this process's row of the grid.

        Args:
            gradients: The gradients that this process has, by layer and parameter.
            likes: Tensors with the shapes of the gradients of all layers.

        Returns:
            The gradients of all layers.
        """
        result: dict[str, dict[str, Tensor]] = {}
        for column in range(self._columns):
            own = {
                (name, key): like
                for name, each in likes.items()
                if self._owners[name] % self._columns == column
                for key, like in each.items()
            }
            if not own:
                continue
            sizes = [like.numel() for like in own.values()]
            if column == self._column:
                flat = torch.cat([gradients[n][k].flatten() for n, k in own])
            else:
                flat = next(iter(own.values())).new_empty(sum(sizes))
            # the process of this row that is in the column
            source = self.rank - self._column + column
            dist.broadcast(flat, self._global_rank(source), group=self._row_group)
            for ((name, key), like), part in zip(
                own.items(), flat.split(sizes), strict=True
            ):
                result.setdefault(name, {})[key] = part.view_as(like)
        return result

    def _global_rank(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def _all_objects(self, own: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own, group=self.group)
        return found

    # -- states

    def states(self) -> dict[str, Any]:
        """Return the states of the layers whose averages this process holds.

        Inverses that are split between processes are gathered.
        """
        own = [name for name in self._layers if self.holds(name)]
        inverses = {
            name: to_state(self._layers[name].inverse)
            for name in own
            if self._has_inverses or self.inverts(name)
        }
        if not self._has_inverses:
            inverses = self._share(inverses, everywhere=True)
        return {name: self._layers[name].state(inverses[name]) for name in own}

    def unlike(self, states: Mapping[str, Any]) -> list[str]:
        """Return names of states that fit no layer, and of layers without a state."""
        return [
            name
            for name in {**self._layers, **states}
            if name not in self._layers
            or (name in states and not self._layers[name].accepts(states[name]))
            or (name not in states and self.holds(name))
        ]

    def load(self, states: Mapping[str, Any], has_begun: bool) -> None:
        """Load states of layers.

        Args:
            states: States, at least of the layers whose averages this process holds.
            has_begun: Whether steps were taken before the state was saved.
        """
        for name, layer in self._layers.items():
            if not self.holds(name):
                layer.forget()
                layer.has_averages = layer.is_inverted = has_begun
                continue
            layer.load(states[name])
            if not self.multiplies(name):
                layer.inverse = None

    # -- set up

    def _count_workers(self, fraction: float | None) -> int:
        # at least one process
        workers = max(1.0, (1.0 if fraction is None else fraction) * self.size)
        is_whole = isclose(workers, round(workers))
        if not is_whole or self.size % round(workers):
            rule = f"be k / {self.size} for a divisor k of {self.size} processes"
            message = describe(self._owner, "grad_worker_fraction", rule, fraction)
            raise ValueError(message)
        return round(workers)

    def _check_same(self) -> None:
        mine = {
            name: [tuple(p.shape) for p in layer.parameters.values()]
            for name, layer in self._layers.items()
        }
        for rank, theirs in enumerate(self._all_objects(mine)):
            names = [n for n in {**mine, **theirs} if mine.get(n) != theirs.get(n)]
            if names or list(mine) != list(theirs):
                rule = "be the same in all processes"
                names = names[:5] or ["their order"]
                found = f"different ones in process {rank}: {', '.join(names)}"
                raise ValueError(
                    describe(self._owner, "the model's layers", rule, found)
                )

    def _form_groups(self) -> None:
        columns = [range(c, self.size, self._columns) for c in range(self._columns)]
        starts = range(0, self.size, self._columns)
        rows = [range(start, start + self._columns) for start in starts]
        self._column_group = self._own_group(columns)
        self._row_group = self._own_group(rows)

    def _own_group(self, split: Sequence[Sequence[int]]) -> Any:
        """Form all groups, as torch requires of each process; return this process's."""
        if len(split) in (1, self.size):
            return self.group  # groups of one process send nothing
        ranks = [[self._global_rank(rank) for rank in own] for own in split]
        return dist.new_subgroups_by_enumeration(ranks)[0]


def _cost(layer: Layer) -> float:
    """Count the operations of inverting a layer's factors, up to a constant."""
    shapes = layer.factor_shapes.values()
    return float(sum(groups * size**3 for groups, size, _ in shapes))


def _assignment(costs: Sequence[float], size: int) -> list[int]:
    """Assign a process to each cost: the highest cost first, to the least busy one."""
    loads = [0.0] * size
    owners = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owner = min(range(size), key=lambda rank: (loads[rank], rank))
        owners[index] = owner
        loads[owner] += costs[index]
    return owners
