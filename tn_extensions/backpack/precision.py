"""Modules with tensors of several dtypes, as under autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """Find a dtype that all tensors can be cast to without loss; at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


class Cast:
    """A view of a module whose floating point tensors all have one dtype.

    Backpropagation does not run under the autocast of the forward pass, and without
    autocast torch cannot multiply tensors of different dtypes.

    Args:
        module: Module that ran a forward pass.
        dtype: The dtype of parameters, buffers, inputs and output.
    """

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self._module = module
        self._dtype = dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().to(self._dtype)
        return value
