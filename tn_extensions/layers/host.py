"""Checks of values, for which the host waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses import FakeTensor


def holds(condition: Tensor) -> bool:
    """Tell whether a condition with a single entry holds.

    All checks of values call this function. They pass if tensors have no values
    (``FakeTensorMode``).
    """
    return isinstance(condition, FakeTensor) or bool(condition)


def is_finite(*tensors: Tensor) -> bool:
    """Tell whether all entries are finite, without a copy and with one transfer."""
    largest = [
        torch.linalg.vector_norm(tensor, torch.inf)
        for tensor in tensors
        if tensor.numel()
    ]
    return not largest or holds(torch.stack([n.isfinite() for n in largest]).all())
