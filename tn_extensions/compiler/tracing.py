"""Who watches: autograd, function transforms and compilers record what is done."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


def is_traced(operands: Iterable[Tensor]) -> bool:
    """Whether operations on tensors are recorded, to be differentiated or compiled.

    Then results may not be written piece by piece, and torch's internal operators,
    which have no derivatives, not be called.
    """
    recorded = torch.is_grad_enabled()
    for operand in operands:
        if (recorded and operand.requires_grad) or not is_plain(operand):
            return True
    level = getattr(torch._C._functorch, "maybe_current_level", None)
    return level is not None and level() is not None


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds data, unlike those that a compiler traces with."""
    return type(tensor) in _PLAIN


def is_capturing(tensor: Tensor) -> bool:
    """Tell whether operations go into a CUDA graph instead of being done."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
