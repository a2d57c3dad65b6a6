"""Processes with sharded parameters (FSDP2) and gradients.

``fully_shard`` splits a parameter into a part for each process. Only the process that
owns a layer has its averages and its inverse. It receives all parts of the gradient,
multiplies, and sends the parts back, in one exchange each way. EKFAC's eigenbases are
sent to all processes for the layer's backward pass, as ``fully_shard`` does with
parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from tn_extensions.errors import describe
from tn_extensions.optim.distributed import Processes
from tn_extensions.optim.layer import Bases, Layer
from tn_extensions.optim.options import Distributed
from tn_extensions.optim.state import attach_tensors, detach_tensors


def processes_of(
    owner: str, layers: Mapping[str, Layer], options: Distributed
) -> Processes:
    """Create the processes that train layers, with whole or sharded parameters.

    Args:
        owner: Name of the caller, for errors.
        layers: The layers by name.
        options: The processes, and the share that multiplies by a layer's inverse.

    Returns:
        The processes.

    Raises:
        NotImplementedError: If parameters are sharded in a way that is not supported.
        ValueError: As for :class:`Processes`.
    """
    group = _sharding_group(owner, layers.values(), options.process_group)
    if group is None:
        return Processes(owner, layers, options)
    return ShardedProcesses(owner, layers, replace(options, process_group=group))


def reshard(model: nn.Module) -> None:
    """Shard parameters again that a forward pass has left whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _sharding_group(owner: str, layers: Iterable[Layer], group: Any) -> Any | None:
    """Find the processes that layers are sharded over.

    Args:
        owner: Name of the caller, for errors.
        layers: The layers.
        group: The process group that the user passed, or ``None``.

    Returns:
        The group. ``None``: no layer is sharded.

    Raises:
        NotImplementedError: If parameters are sharded in different ways, over a mesh of
            more than one axis (HSDP, tensor parallelism), or stored on another device
            than the mesh's.
        ValueError: If ``group`` is not the group of the sharded parameters.
    """
    parameters = {
        f"{layer.name}.{key}": own
        for layer in layers
        for key, own in layer.trained.resting.items()
    }
    first = next((p for p in parameters.values() if isinstance(p, DTensor)), None)
    if first is None:
        return None
    mesh = first.device_mesh
    remedy = "Use fully_shard on a mesh of one axis, or skip_layers"
    for name, own in parameters.items():
        found = _reason_against(own, mesh)
        if found:
            rule = (
                "be sharded by fully_shard over one mesh of one axis, like all others"
            )
            message = describe(owner, name, rule, found, remedy)
            raise NotImplementedError(message)
    own_group = mesh.get_group()
    if group is not None:
        ranks, others = map(dist.get_process_group_ranks, (own_group, group))
        if ranks != others:
            rule = f"be the group of the sharded parameters, with ranks {ranks}"
            raise ValueError(describe(owner, "process_group", rule, others))
    return own_group


def _reason_against(parameter: Tensor, mesh: Any) -> str | None:
    if not isinstance(parameter, DTensor):
        return "a parameter that is not sharded"
    if parameter.device_mesh.ndim != 1:
        return f"a mesh of {parameter.device_mesh.ndim} axes"
    if parameter.device_mesh != mesh:
        return "another mesh"
    (placement,) = parameter.placements
    if type(placement) is not Shard:
        return str(placement)
    if parameter.device.type != mesh.device_type:
        return f"a parameter on {parameter.device} and a mesh on {mesh.device_type}"
    return None


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, or a whole tensor as it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


class ShardedProcesses(Processes):
    """Processes that each have a part of parameters and gradients.

    Arguments and errors are those of :class:`Processes`.
    """

    def holds(self, name: str) -> bool:
        """Tell whether this process holds a layer's averages."""
        return self.inverts(name)

    @property
    def _has_inverses(self) -> bool:
        return True

    def _load(self, layer: Layer) -> float:
        # parameters are sharded to save memory: balance memory, not time
        shapes = layer.factor_shapes.values()
        return float(sum(groups * size**2 for groups, size, _ in shapes))

    def _count_workers(self, fraction: float | None) -> int:
        if (fraction or 0.0) * self.size > 1:
            rule = "be 0 or None if parameters are sharded"
            message = describe(self._owner, "grad_worker_fraction", rule, fraction)
            raise ValueError(message)
        return 1

    def all_agree(self, conditions: list[bool]) -> list[bool]:
        """Tell for each condition whether it holds in all processes."""
        held = torch.tensor(conditions, dtype=torch.int32, device=self.device)
        dist.all_reduce(held, dist.ReduceOp.MIN, group=self.group)
        return [bool(each) for each in held.tolist()]

    def total(self, summand: Tensor) -> Tensor:
        """Sum over the processes."""
        dist.all_reduce(summand, group=self.group)
        return summand

    def _receiver(self, name: str) -> int | None:
        return self._owners[name]

    def load(self, states: Mapping[str, Any], has_begun: bool) -> None:
        """Load states of layers, then announce which eigenbases can be borrowed."""
        super().load(states, has_begun)
        self._send_inverses(list(self._layers.values()))

    def _send_inverses(self, layers: Sequence[Layer]) -> None:
        """Announce eigenbases that can be borrowed; inverses are not sent."""
        corrected = [own for own in layers if own.options.eigenvalue_correction]
        if not corrected or self.size == 1:
            return
        own = {
            layer.name: detach_tensors(dict(enumerate(layer.bases or ())), [])
            for layer in corrected
            if self.inverts(layer.name)
        }
        for outlines in self._all_objects(own):
            for name, outline in outlines.items():
                lend = partial(self._lend, self._layers[name], outline)
                self._layers[name].borrow = lend if outline else None

    def _lend(self, layer: Layer, outline: Any) -> Bases:
        """Send a layer's eigenbases to all processes, which drop them after use."""
        own: list[Tensor] = []
        detach_tensors(dict(enumerate(layer.bases or ())), own)
        source = self._owners[layer.name]
        arrive = partial(self._broadcast, source, self.group, iter(own))
        left, right = attach_tensors(outline, arrive).values()
        return left, right

    def preconditioned(
        self, layers: Mapping[str, Layer]
    ) -> Iterable[tuple[str, Mapping[str, Tensor]]]:
        """Multiply gradients by the inverses, each in the process that has the inverse.

        Args:
            layers: Layers whose gradients are multiplied, the same in all processes.

        Returns:
            This process's parts of the products, by layer and parameter.
        """
        gradients = {
            (name, key): gradient
            for name, layer in layers.items()
            for key, gradient in layer.gradients.items()
        }
        parts = {key: local_part(gradient) for key, gradient in gradients.items()}
        like, ranks = next(iter(parts.values())), range(self.size)
        owned = [[k for k in gradients if self._owners[k[0]] == rank] for rank in ranks]
        own = owned[self.rank]
        shapes = [_shapes_of_parts(gradients[key]) for key in own]
        received = self._exchange(
            [[parts[key] for key in keys] for keys in owned],
            [[each[rank] for each in shapes] for rank in ranks],
            like,
        )
        whole: dict[str, dict[str, Tensor]] = {}
        for name, key in own:
            gathered = [next(from_rank) for from_rank in received]
            axis = _axis(gradients[name, key])
            whole.setdefault(name, {})[key] = torch.cat(gathered, axis)
        del received  # do not hold the gradients twice
        new = {name: layers[name].preconditioned(whole.pop(name)) for name in [*whole]}
        chunks = [
            new[name][key].split([shape[axis] for shape in each], axis)
            for (name, key), each in zip(own, shapes, strict=True)
            for axis in [_axis(gradients[name, key])]
        ]
        received = self._exchange(
            [[each[rank] for each in chunks] for rank in ranks],
            [[parts[key].shape for key in keys] for keys in owned],
            like,
        )
        found: dict[str, dict[str, Tensor]] = {}
        for keys, from_rank in zip(owned, received, strict=True):
            for (name, key), part in zip(keys, from_rank, strict=True):
                found.setdefault(name, {})[key] = part
        return found.items()

    def _exchange(
        self, sent: list[list[Tensor]], shapes: list[list[torch.Size]], like: Tensor
    ) -> list[Iterator[Tensor]]:
        """Send tensors to each process, and receive some of known shapes from each."""
        flat = torch.cat(
            [like.new_empty(0), *(t.flatten() for own in sent for t in own)]
        )
        counts = [sum(each.numel() for each in own) for own in sent]
        expected = [sum(shape.numel() for shape in own) for own in shapes]
        received = flat.new_empty(sum(expected))
        dist.all_to_all_single(received, flat, expected, counts, group=self.group)
        return [
            map(Tensor.view, block.split([s.numel() for s in own]), own)
            for block, own in zip(received.split(expected), shapes, strict=True)
        ]


def _axis(gradient: Any) -> int:
    (placement,) = gradient.placements
    return int(placement.dim) % gradient.dim()


def _shapes_of_parts(gradient: Any) -> list[torch.Size]:
    """Return the shapes of all processes' parts, which ``torch.chunk`` defines."""
    axis, size = _axis(gradient), gradient.device_mesh.size()
    length = gradient.shape[axis]
    most = -(-length // size)
    lengths = [max(0, min(most, length - rank * most)) for rank in range(size)]
    shape = gradient.shape
    return [torch.Size([*shape[:axis], own, *shape[axis + 1 :]]) for own in lengths]
