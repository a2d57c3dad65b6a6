"""What depends on values: the host asks for them, and waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses import FakeTensor


def holds(condition: Tensor) -> bool:
    """Tell whether a condition, of a single entry, holds.

    Checks of values ask here, and nowhere else. They pass where tensors have no values
    (``FakeTensorMode``).
    """
    return isinstance(condition, FakeTensor) or bool(condition)


def is_finite(*tensors: Tensor) -> bool:
    """Tell whether all entries are finite, in a pass without memory and one answer."""
    largest = [
        torch.linalg.vector_norm(tensor, torch.inf)
        for tensor in tensors
        if tensor.numel()
    ]
    return not largest or holds(torch.stack([n.isfinite() for n in largest]).all())
