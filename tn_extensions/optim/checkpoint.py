"""Load states from ``torch.distributed.checkpoint``, for any number of processes."""

from __future__ import annotations

from collections.abc import Collection
from os import PathLike
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from tn_extensions.errors import describe


def read_state(
    owner: str, checkpoint_id: str | PathLike[str], key: str, layers: Collection[str]
) -> dict[str, Any]:
    """Read the state of some layers from a checkpoint.

    ``load`` fills a dictionary of tensors, whose shapes must be known. They are read
    from the checkpoint, since the shapes of low-rank factors vary.

    Args:
        owner: Name of the caller, for errors.
        checkpoint_id: Folder of the checkpoint.
        key: Key of the state in the dictionary that was saved.
        layers: Names of the layers.

    Returns:
        The state. Layers that are not in the checkpoint are absent.

    Raises:
        ValueError: If the checkpoint has no such key.
    """
    metadata = FileSystemReader(checkpoint_id).read_metadata()
    state: dict[str, Any] = {}
    for name, path in (metadata.planner_data or {}).items():
        is_layers = path[:2] == (key, "layers")
        if path[0] != key or (is_layers and path[2] not in layers):
            continue
        saved = metadata.state_dict_metadata[name]
        value = None
        if isinstance(saved, TensorStorageMetadata):
            value = torch.empty(saved.size, dtype=saved.properties.dtype)
        _put(state, path, value)
    if not state:
        rule, found = "be a key of the checkpoint", repr(key)
        raise ValueError(describe(owner, "key", rule, found))
    # each process reads only the layers that it needs
    load(state, checkpoint_id=checkpoint_id, no_dist=True)
    found = state[key]
    own = found.setdefault("layers", {})
    # empty containers are not saved
    found["layers"] = {
        name: {"averages": {}, "bases": None, "inverse": None} | each
        for name, each in own.items()
    }
    return dict(found)


def _put(state: dict[str, Any], path: tuple[str | int, ...], value: Any) -> None:
    """Put a value at the end of a path of keys and indices."""
    *steps, last = path
    container: Any = state
    for step, following in zip(steps, path[1:], strict=True):
        empty: Any = [] if isinstance(following, int) else {}
        container = container.setdefault(step, empty)
    if isinstance(last, int):
        container.extend([None] * (last + 1 - len(container)))
    container[last] = value
