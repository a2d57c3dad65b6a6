"""Protect attributes of modules from tensors of a transform."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def attributes_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore tensors that modules store as attributes, after a transform ran them."""
    kept = [
        (vars(module), {k: v for k, v in vars(module).items() if isinstance(v, Tensor)})
        for module in modules
    ]
    try:
        yield
    finally:
        for attributes, tensors in kept:
            attributes.update(tensors)
