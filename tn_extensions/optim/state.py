"""Convert inverses to plain containers of tensors and numbers, and back."""

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
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


_TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (LowRank, KroneckerProduct, EigendecomposedMatrix, Triangle)
}
# names in states of earlier versions
_TYPES |= {"Product": KroneckerProduct, "Rotated": EigendecomposedMatrix}


def to_state(value: Any) -> Any:
    """Convert a block and its parts to dictionaries of tensors and numbers.

    A decomposition that is stored below another matrix's diagonal is packed.
    """
    if isinstance(value, CholeskyInverse):
        value = Triangle.of(value)
    if not is_dataclass(value):
        return value
    own = {field.name: to_state(getattr(value, field.name)) for field in fields(value)}
    return {"type": type(value).__name__, **own}


def from_state(state: Any) -> Any:
    """Undo :func:`to_state`, except that packed triangles stay packed."""
    if not isinstance(state, dict):
        return state
    own = {name: from_state(value) for name, value in state.items() if name != "type"}
    return _TYPES[state["type"]](**own)


def detach_tensors(state: Any, tensors: list[Tensor]) -> Any:
    """Replace the tensors of a state by their shapes and dtypes.

    Args:
        state: A state.
        tensors: List to which the tensors are appended, in order and contiguous.

    Returns:
        The state without tensors.
    """
    if isinstance(state, dict):
        return {name: detach_tensors(own, tensors) for name, own in state.items()}
    if not isinstance(state, Tensor):
        return state
    tensors.append(state.contiguous())
    return Outline(tuple(state.shape), state.dtype)


def attach_tensors(state: Any, make: Callable[[Outline], Tensor]) -> Any:
    """Undo :func:`detach_tensors`, with tensors from a function, in the same order."""
    if isinstance(state, dict):
        return {name: attach_tensors(own, make) for name, own in state.items()}
    return make(state) if isinstance(state, Outline) else state
