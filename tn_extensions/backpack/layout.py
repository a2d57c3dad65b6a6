"""Memory formats that make torch's kernels fast."""

from __future__ import annotations

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(x: Tensor) -> Tensor:
    """Convert to channels-last memory format where this saves time.

    It reduces the time of oneDNN's transposed convolutions in float32, down to a third
    in the best case. Their outputs have this format, too.

    Args:
        x: Tensor, ``[N, C, I1, ...]``.

    Returns:
        A tensor with the same values.
    """
    known = x.dim() in _CHANNELS_LAST and x.dtype == torch.float32
    if not known or x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return x
    return x.to(memory_format=_CHANNELS_LAST[x.dim()])


def laid_out_like(x: Tensor, other: Tensor) -> Tensor:
    """Convert to channels-last memory format if another tensor has it.

    Args:
        x: Tensor, ``[N, C, I1, ...]``.
        other: Tensor with the same number of axes.

    Returns:
        A tensor with the values of ``x``.
    """
    layout = _CHANNELS_LAST.get(x.dim())
    if layout is None or not other.is_contiguous(memory_format=layout):
        return x
    return x.to(memory_format=layout)
