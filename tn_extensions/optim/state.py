"""Inverses as plain containers of tensors and numbers, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tn_extensions.kronecker.cholesky_inverse import CholeskyInverse
from tn_extensions.kronecker.eigendecomposed import EigendecomposedMatrix
from tn_extensions.kronecker.kronecker_product import KroneckerProduct
from tn_extensions.kronecker.low_rank import LowRank
from tn_extensions.optim.triangles import Triangle


class Outline(NamedTuple):
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


_TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (LowRank, KroneckerProduct, EigendecomposedMatrix, Triangle)
}
# as earlier versions named them
_TYPES |= {"Product": KroneckerProduct, "Rotated": EigendecomposedMatrix}


def to_state(value: Any) -> Any:
    """Blocks and their parts as dictionaries; tensors and numbers as they are.

    Decompositions that share a square with another matrix are taken out of it.
    """
    if isinstance(value, CholeskyInverse):
        value = Triangle.of(value)
    if not is_dataclass(value):
        return value
    own = {field.name: to_state(getattr(value, field.name)) for field in fields(value)}
    return {"type": type(value).__name__, **own}


def from_state(state: Any) -> Any:
    """The inverse of :func:`to_state`, but for triangles, which stay apart."""
    if not isinstance(state, dict):
        return state
    own = {name: from_state(value) for name, value in state.items() if name != "type"}
    return _TYPES[state["type"]](**own)


def detach_tensors(state: Any, tensors: list[Tensor]) -> Any:
    """A state with its tensors replaced by their shapes and types.

    Args:
        state: A state.
        tensors: What the tensors are appended to, in order, contiguous.
    """
    if isinstance(state, dict):
        return {name: detach_tensors(own, tensors) for name, own in state.items()}
    if not isinstance(state, Tensor):
        return state
    tensors.append(state.contiguous())
    return Outline(tuple(state.shape), state.dtype)


def attach_tensors(state: Any, make: Callable[[Outline], Tensor]) -> Any:
    """The inverse of :func:`detach_tensors`, with tensors that are made in order."""
    if isinstance(state, dict):
        return {name: attach_tensors(own, make) for name, own in state.items()}
    return make(state) if isinstance(state, Outline) else state
