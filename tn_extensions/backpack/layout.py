"""Memory formats in which torch's kernels are fast."""

from __future__ import annotations

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(x: Tensor) -> Tensor:
    """The same values, with the channels closest in memory where that pays.

    oneDNN's transposed convolutions of float32 take a third to all of the time then
    and pass the format on.

    Args:
        x: ``[N, C, I1, ...]``.
    """
    known = x.dim() in _CHANNELS_LAST and x.dtype == torch.float32
    if not known or x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return x
    return x.to(memory_format=_CHANNELS_LAST[x.dim()])


def laid_out_like(x: Tensor, other: Tensor) -> Tensor:
    """The same values, with the channels closest in memory if they are in ``other``.

    Args:
        x: ``[N, C, I1, ...]``.
        other: Of the same number of axes.
    """
    layout = _CHANNELS_LAST.get(x.dim())
    if layout is None or not other.is_contiguous(memory_format=layout):
        return x
    return x.to(memory_format=layout)
