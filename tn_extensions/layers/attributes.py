"""Attributes of modules that a transform must not leave behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def attributes_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Leave no tensors of a transform where modules keep what they computed."""
    kept = [
        (vars(module), {k: v for k, v in vars(module).items() if isinstance(v, Tensor)})
        for module in modules
    ]
    try:
        yield
    finally:
        for attributes, tensors in kept:
            attributes.update(tensors)
