"""Tests of whether autograd, function transforms or compilers record operations."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

_PLAIN = (Tensor, nn.Parameter)
_PROXY = torch._C._TorchDispatchModeKey.PROXY


def is_traced(operands: Iterable[Tensor]) -> bool:
    """Tell whether autograd, a transform or a compiler records operations on tensors.

    If so, results must not be written piece by piece, and torch's internal operators,
    which have no derivatives, must not be called.
    """
    recorded = torch.is_grad_enabled()
    for operand in operands:
        if (recorded and operand.requires_grad) or is_compiled(operand):
            return True
    level = getattr(torch._C._functorch, "maybe_current_level", None)
    return level is not None and level() is not None


def is_compiled(tensor: Tensor) -> bool:
    """Tell whether a compiler records operations on a tensor.

    Under ``FakeTensorMode`` alone, the answer is no: operations run as on the tensors'
    device, only without values.
    """
    if isinstance(tensor, FakeTensor):
        return torch._C._get_dispatch_mode(_PROXY) is not None
    return not holds_data(tensor)


def holds_data(tensor: Tensor) -> bool:
    """Tell whether a tensor holds data, unlike a compiler's tensors."""
    return type(tensor) in _PLAIN


def is_capturing(tensor: Tensor) -> bool:
    """Tell whether operations are captured into a CUDA graph instead of being run."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def is_recorded() -> bool:
    """Tell whether a compiler, an export or ``make_fx`` is recording operators."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._get_dispatch_mode(_PROXY) is not None
