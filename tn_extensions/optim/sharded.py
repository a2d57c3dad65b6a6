"""Gradients of sharded parameters (FSDP2), whole where they are multiplied.

``fully_shard`` splits a parameter into one part a process. A layer's owner receives all
parts of its gradient, multiplies, and sends the parts back, in one exchange each way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from tn_extensions.errors import describe
from tn_extensions.optim.layer import Layer

Gradients = Mapping[str, Mapping[str, Tensor]]
"""By name of the layer and of the parameter in it."""


def reshard(model: nn.Module) -> None:
    """Free parameters that a forward pass has left whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def sharding_group(owner: str, layers: Sequence[Layer], group: Any) -> Any | None:
    """Find the processes that layers are sharded over.

    Args:
        owner: Whom errors name.
        layers: The layers.
        group: The process group that was asked for, if one was.

    Returns:
        The group. ``None``: all layers are whole.

    Raises:
        NotImplementedError: If parameters are sharded in more than one way, over a mesh
            of more than one axis (HSDP, tensor parallelism), or kept on another device
            than the one that computes.
        ValueError: If the process group is another one.
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
            rule = "be sharded by fully_shard over the same mesh of one axis, or whole"
            message = describe(owner, name, f"{rule}, as all others", found, remedy)
            raise NotImplementedError(message)
    own_group = mesh.get_group()
    if group is not None:
        ranks, others = map(dist.get_process_group_ranks, (own_group, group))
        if ranks != others:
            rule = f"be that of the sharded parameters, of ranks {ranks}"
            raise ValueError(describe(owner, "process_group", rule, others))
    return own_group


def _reason_against(parameter: Tensor, mesh: Any) -> str | None:
    if not isinstance(parameter, DTensor):
        return "a parameter that is whole"
    if parameter.device_mesh.ndim != 1:
        return f"a mesh of {parameter.device_mesh.ndim} axes"
    if parameter.device_mesh != mesh:
        return "another mesh"
    (placement,) = parameter.placements
    if type(placement) is not Shard:
        return str(placement)
    if parameter.device.type != mesh.device_type:
        return f"a parameter on {parameter.device} of a mesh on {mesh.device_type}"
    return None


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, without a copy; a whole one as it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


class Exchange:
    """Gradients of a step, sent to the owners of their layers and back.

    Args:
        gradients: Sharded gradients, the same ones in all processes.
        owners: Who multiplies a layer's gradients, by name.
        rank: This process.
        group: The processes.
    """

    def __init__(
        self, gradients: Gradients, owners: Mapping[str, int], rank: int, group: Any
    ) -> None:
        self._gradients = gradients
        self._group = group
        self._rank = rank
        self._size = dist.get_world_size(group)
        names = sorted(gradients, key=lambda name: owners[name])
        # by owner, as an exchange sends them
        self._keys = [
            (name, key, owners[name]) for name in names for key in gradients[name]
        ]

    def gather(self) -> dict[str, dict[str, Tensor]]:
        """Return the whole gradients of the layers that this process owns."""
        found: dict[str, dict[str, Tensor]] = {}
        sent = [local_part(self._gradients[n][k]).flatten() for n, k, _ in self._keys]
        received = self._sent(sent, self._num_sent(), self._num_owned())
        parts = [block.split(self._sizes_owned(s)) for s, block in enumerate(received)]
        for index, (name, key) in enumerate(self._owned()):
            gradient = self._gradients[name][key]
            chunks = [
                own[index].view(_shape_of_part(gradient, source))
                for source, own in enumerate(parts)
            ]
            whole = torch.cat(chunks, _axis(gradient))
            found.setdefault(name, {})[key] = whole
        return found

    def scatter(self, new: Gradients) -> dict[str, dict[str, Tensor]]:
        """Return this process's parts of all layers' gradients.

        Args:
            new: Whole gradients of the layers that this process owns.
        """
        sent = []
        for rank in range(self._size):
            for name, key in self._owned():
                gradient, whole = self._gradients[name][key], new[name][key]
                axis = _axis(gradient)
                shapes = [_shape_of_part(gradient, r)[axis] for r in range(self._size)]
                part = whole.narrow(axis, sum(shapes[:rank]), shapes[rank])
                sent.append(part.flatten())
        received = self._sent(sent, self._num_owned(), self._num_sent())
        flat = torch.cat(received)
        locals_ = [local_part(self._gradients[n][k]) for n, k, _ in self._keys]
        parts = flat.split([own.numel() for own in locals_])
        found: dict[str, dict[str, Tensor]] = {}
        for (name, key, _), own, part in zip(self._keys, locals_, parts, strict=True):
            found.setdefault(name, {})[key] = part.view(own.shape)
        return found

    def _owned(self) -> list[tuple[str, str]]:
        return [(n, k) for n, k, owner in self._keys if owner == self._rank]

    def _sizes_owned(self, source: int) -> list[int]:
        """Entries that another process has of each gradient that this one owns."""
        return [
            _shape_of_part(self._gradients[name][key], source).numel()
            for name, key in self._owned()
        ]

    def _num_owned(self) -> list[int]:
        return [sum(self._sizes_owned(source)) for source in range(self._size)]

    def _num_sent(self) -> list[int]:
        numbers = [0] * self._size
        for name, key, owner in self._keys:
            numbers[owner] += local_part(self._gradients[name][key]).numel()
        return numbers

    def _sent(
        self, tensors: list[Tensor], sizes: list[int], sizes_received: list[int]
    ) -> tuple[Tensor, ...]:
        """Send a block to each process, and return the blocks from each."""
        like = local_part(next(iter(next(iter(self._gradients.values())).values())))
        flat = torch.cat(tensors) if tensors else like.new_empty(0)
        received = flat.new_empty(sum(sizes_received))
        dist.all_to_all_single(received, flat, sizes_received, sizes, group=self._group)
        return received.split(sizes_received)


def _axis(gradient: Any) -> int:
    (placement,) = gradient.placements
    return int(placement.dim) % gradient.dim()


def _shape_of_part(gradient: Any, rank: int) -> torch.Size:
    """Return the shape of a process's part; parts are those of ``torch.chunk``."""
    axis, size = _axis(gradient), gradient.device_mesh.size()
    length = gradient.shape[axis]
    most = -(-length // size)
    shape = list(gradient.shape)
    shape[axis] = max(0, min(most, length - rank * most))
    return torch.Size(shape)
