"""Modules with tensors of several dtypes, as autocast leaves them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """What all tensors fit in; at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


class Cast:
    """A module as its derivatives see it, with all floating point tensors of one dtype.

    Backpropagation runs outside of the autocast region of the forward pass, where
    products of different dtypes are errors.

    Args:
        module: Module that ran a forward pass.
        dtype: Of parameters, buffers, inputs and output.
    """

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self._module = module
        self._dtype = dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().to(self._dtype)
        return value
