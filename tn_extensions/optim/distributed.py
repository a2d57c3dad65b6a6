"""What processes tell each other: statistics, inverses, preconditioned gradients.

The work is split as by KAISA (Pauloski et al., SC 2021): each layer is inverted by one
process, by cost. A share of the processes multiplies by its inverse, and each of these
sends the gradients to some of the others. Processes form a grid; those of a column work
on the same layers, those of a row get the gradients from each other.

Where parameters are sharded, one process has a layer's averages and its inverse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isclose
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tn_extensions.errors import describe
from tn_extensions.kronecker.factors import dense, is_low_rank
from tn_extensions.optim.layer import Layer
from tn_extensions.optim.options import Distributed
from tn_extensions.optim.sharded import Exchange, Gradients, sharding_group
from tn_extensions.optim.state import Outline, attach_tensors, detach_tensors
from tn_extensions.optim.statistics import RANK_LIMIT, Statistics
from tn_extensions.optim.triangles import pack, unpack

BUCKET_BYTES = 25 * 2**20
Key = tuple[str, str]
"""A layer's name and the kind of its statistics."""


class Processes:
    """The processes that train together, of which this is one.

    Args:
        owner: Whom errors name.
        layers: The layers, the same in all processes.
        options: Which processes, and how many of them multiply by a layer's inverse.

    Raises:
        NotImplementedError: If parameters are sharded in a way that is not supported.
        ValueError: If the share is not one of the processes, or layers differ.
    """

    def __init__(
        self, owner: str, layers: Sequence[Layer], options: Distributed
    ) -> None:
        self._owner = owner
        group = options.process_group
        is_used = dist.is_available() and dist.is_initialized()
        sharding = sharding_group(owner, layers, group) if is_used else None
        self.is_sharded = sharding is not None
        """Whether processes have parts of parameters, and of the gradients."""
        self.group = sharding if self.is_sharded else group
        self.rank = dist.get_rank(group) if is_used else 0
        self.size = dist.get_world_size(group) if is_used else 1
        self._workers = self._count_workers(options.grad_worker_fraction)
        self._columns = self.size // self._workers
        self._device = next(iter(layers[0].parameters.values())).device
        # who shards parameters is short of memory
        costs = [_memory(own) if self.is_sharded else _cost(own) for own in layers]
        self._owners = _assignment(costs, self.size)
        self._names = [layer.name for layer in layers]
        if self.size > 1:
            self._check_same(layers)
            self._form_groups()

    def owner_of(self, name: str) -> int:
        """Who inverts a layer."""
        return self._owners[self._names.index(name)]

    def inverts(self, name: str) -> bool:
        """Tell whether this process inverts a layer."""
        return self.owner_of(name) == self.rank

    def multiplies(self, name: str) -> bool:
        """Tell whether this process multiplies by a layer's inverse."""
        return self.owner_of(name) % self._columns == self.rank % self._columns

    @property
    def has_all_inverses(self) -> bool:
        """Tell whether each process has the inverses of all layers."""
        return self._columns == 1

    # -- statistics

    def all_agree(self, conditions: list[bool]) -> list[bool]:
        """Conditions that hold in all processes, where these have parts of gradients.

        Otherwise, all see the same.
        """
        if not self.is_sharded:
            return conditions
        held = torch.tensor(conditions, dtype=torch.int32, device=self._device)
        dist.all_reduce(held, dist.ReduceOp.MIN, group=self.group)
        return [bool(each) for each in held.tolist()]

    def total(self, summand: Tensor) -> Tensor:
        """Sum over the processes, where these have parts of gradients."""
        if self.is_sharded:
            dist.all_reduce(summand, group=self.group)
        return summand

    def average(self, found: Mapping[str, Statistics]) -> dict[str, Statistics]:
        """Averages over the processes, of those layers that all of them used.

        Where parameters are sharded, a layer's owner has them, and others none.
        """
        if self.size == 1:
            return dict(found)
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
            tensor = flat[key]
            if all(rows) and sum(rows) <= RANK_LIMIT * tensor.shape[2]:
                name, what = key
                gathered = self._gathered(tensor, rows, self._receiver(name))
                if gathered is not None:
                    result[name][what] = gathered
            else:
                dense_ones[key] = tensor
        for (name, what), tensor in self._reduced(dense_ones):
            result[name][what] = tensor
        return result

    def _receiver(self, name: str) -> int | None:
        """Who gets a layer's averages; ``None``: all."""
        return self.owner_of(name) if self.is_sharded else None

    def _gathered(
        self, factor: Tensor, rows: list[int], receiver: int | None
    ) -> Tensor | None:
        """Rows of all processes; unlike numbers are padded with zeros."""
        factor = factor.mul(self.size**-0.5)
        padding = (0, 0, 0, max(rows) - factor.shape[1])
        own = torch.nn.functional.pad(factor, padding).contiguous()
        parts = [torch.empty_like(own) for _ in rows]
        if receiver is None:
            dist.all_gather(parts, own, group=self.group)
        elif receiver == self.rank:
            dist.gather(own, parts, self._global_rank(receiver), self.group)
        else:
            dist.gather(own, None, self._global_rank(receiver), self.group)
            return None
        return torch.cat([p[:, :r] for p, r in zip(parts, rows, strict=True)], 1)

    def _reduced(self, tensors: dict[Key, Tensor]) -> Iterator[tuple[Key, Tensor]]:
        """Matrices are sent as triangles, in buckets that overlap."""
        packed = {
            key: own if key[1] == "moments" else pack(dense(own))
            for key, own in tensors.items()
        }
        pending: list[tuple[list[Key], int | None, Tensor, Any]] = []
        receivers = {name: self._receiver(name) for name, _ in packed}
        for receiver in dict.fromkeys(receivers.values()):
            own = {k: t for k, t in packed.items() if receivers[k[0]] == receiver}
            for keys in _buckets(own):
                flat = torch.cat([own[key].flatten() for key in keys]).div_(self.size)
                pending.append((keys, receiver, flat, self._reduce(flat, receiver)))
        for keys, receiver, flat, work in pending:
            work.wait()
            if receiver not in (None, self.rank):
                continue
            parts = flat.split([packed[key].numel() for key in keys])
            for key, part in zip(keys, parts, strict=True):
                shaped = part.view_as(packed[key])
                yield key, shaped if key[1] == "moments" else unpack(shaped)

    def _reduce(self, flat: Tensor, receiver: int | None) -> Any:
        if receiver is None:
            return dist.all_reduce(flat, group=self.group, async_op=True)
        destination = self._global_rank(receiver)
        return dist.reduce(flat, destination, group=self.group, async_op=True)

    # -- inverses and gradients

    def exchange(self, gradients: Gradients) -> Exchange:
        """Parts of sharded gradients, to be sent to the layers' owners and back."""
        owners = dict(zip(self._names, self._owners, strict=True))
        return Exchange(gradients, owners, self.rank, self.group)

    def share(self, states: Mapping[str, Any], everywhere: bool) -> dict[str, Any]:
        """States of layers, from those who own them.

        Args:
            states: What this process has, of the layers that it owns.
            everywhere: Whether all get them, or only those who multiply by them.

        Returns:
            What this process got, and had, by layer.
        """
        if self.size == 1 or not (everywhere or self._workers > 1):
            return dict(states)
        own: list[Tensor] = []
        outlines = {name: detach_tensors(each, own) for name, each in states.items()}
        result = dict(states)
        group = self.group if everywhere else self._column_group
        for source, found in enumerate(self._all_objects(outlines)):
            if not everywhere and source % self._columns != self._column:
                continue
            tensors = iter(own)

            def arrive(
                outline: Outline, source: int = source, tensors: Any = tensors
            ) -> Tensor:
                if source == self.rank:
                    # of another memory layout, products would round differently
                    tensor: Tensor = next(tensors)
                else:
                    tensor = torch.empty(
                        outline.shape, dtype=outline.dtype, device=self._device
                    )
                dist.broadcast(tensor, self._global_rank(source), group=group)
                return tensor

            for name, outline in found.items():
                result[name] = attach_tensors(outline, arrive)
        return result

    def share_gradients(
        self, gradients: Mapping[str, Mapping[str, Tensor]], likes: Mapping[str, Any]
    ) -> dict[str, Mapping[str, Tensor]]:
        """Preconditioned gradients of all layers, from those who have them.

        Args:
            gradients: What this process has, by layer and parameter.
            likes: Tensors of their shapes, of all layers.
        """
        result = dict(gradients)
        row = self.rank // self._columns
        for column in range(self._columns):
            names = [n for n in likes if self.owner_of(n) % self._columns == column]
            keys = [(name, key) for name in names for key in likes[name]]
            if not keys:
                continue
            if column == self._column:
                flat = torch.cat([gradients[n][k].flatten() for n, k in keys])
            else:
                sizes = sum(likes[n][k].numel() for n, k in keys)
                name, key = keys[0]
                flat = likes[name][key].new_empty(sizes)
            source = row * self._columns + column
            dist.broadcast(flat, self._global_rank(source), group=self._row_group)
            parts = flat.split([likes[n][k].numel() for n, k in keys])
            for (name, key), part in zip(keys, parts, strict=True):
                if column != self._column:
                    own = dict(result.get(name, {}))
                    result[name] = own | {key: part.view_as(likes[name][key])}
        return result

    def _global_rank(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def _all_objects(self, own: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own, group=self.group)
        return found

    # -- set up

    @property
    def _column(self) -> int:
        return self.rank % self._columns

    def _count_workers(self, fraction: float | None) -> int:
        name = "grad_worker_fraction"
        if fraction is None:
            fraction = 0.0 if self.is_sharded else 1.0
        # less than one process is one
        workers = max(1.0, fraction * self.size)
        if self.is_sharded and workers > 1:
            rule = "be 0 or None where parameters are sharded"
            raise ValueError(describe(self._owner, name, rule, fraction))
        is_whole = isclose(workers, round(workers))
        if not is_whole or self.size % round(workers):
            rule = f"be a divisor of the number of processes, {self.size}, over it"
            raise ValueError(describe(self._owner, name, rule, fraction))
        return round(workers)

    def _check_same(self, layers: Sequence[Layer]) -> None:
        mine = {
            layer.name: [tuple(p.shape) for p in layer.parameters.values()]
            for layer in layers
        }
        for rank, theirs in enumerate(self._all_objects(mine)):
            names = [n for n in {**mine, **theirs} if mine.get(n) != theirs.get(n)]
            if names or list(mine) != list(theirs):
                rule = "be the same in all processes"
                found = f"others in process {rank}: {', '.join(names[:5]) or 'order'}"
                raise ValueError(
                    describe(self._owner, "the model's layers", rule, found)
                )

    def _form_groups(self) -> None:
        """Each process forms all groups, as torch demands."""
        self._column_group: Any = None
        self._row_group: Any = None
        columns = [range(c, self.size, self._columns) for c in range(self._columns)]
        starts = range(0, self.size, self._columns)
        rows = [range(start, start + self._columns) for start in starts]
        for ranks in columns if 1 < self._workers < self.size else []:
            group = dist.new_group([self._global_rank(rank) for rank in ranks])
            self._column_group = group if self.rank in ranks else self._column_group
        for ranks in rows if 1 < self._columns < self.size else []:
            group = dist.new_group([self._global_rank(rank) for rank in ranks])
            self._row_group = group if self.rank in ranks else self._row_group
        if self._workers == self.size:
            self._column_group = self.group
        if self._columns == self.size:
            self._row_group = self.group


def _cost(layer: Layer) -> float:
    """Operations of inverting a layer's factors, to a constant."""
    shapes = layer.factor_shapes.values()
    return float(sum(groups * size**3 for groups, size, _ in shapes))


def _memory(layer: Layer) -> float:
    """Entries of a layer's factors."""
    shapes = layer.factor_shapes.values()
    return float(sum(groups * size**2 for groups, size, _ in shapes))


def _assignment(costs: Sequence[float], size: int) -> list[int]:
    """A process for each cost: the most expensive one first, to the least busy."""
    loads = [0.0] * size
    owners = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owner = min(range(size), key=lambda rank: (loads[rank], rank))
        owners[index] = owner
        loads[owner] += costs[index]
    return owners


def _buckets(
    tensors: Mapping[Key, Tensor],
) -> Iterator[list[Key]]:
    """Keys of tensors of one type that fill a bucket together."""
    held: list[Key] = []
    num_bytes = 0
    for key, tensor in tensors.items():
        is_other = held and tensors[held[0]].dtype != tensor.dtype
        if held and (is_other or num_bytes + tensor.nbytes > BUCKET_BYTES):
            yield held
            held, num_bytes = [], 0
        held.append(key)
        num_bytes += tensor.nbytes
    if held:
        yield held
