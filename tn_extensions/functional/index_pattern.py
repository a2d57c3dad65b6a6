"""Index patterns of convolutions as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from tn_extensions.conv import Conv
from tn_extensions.conv_dim import as_int
from tn_extensions.errors import describe
from tn_extensions.network.methods import method_of
from tn_extensions.padding import source_positions

_NAME = "Conv.index_pattern"


@method_of(Conv)
def index_pattern(
    conv: Conv,
    /,
    dim: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Create the index pattern ``P[k, o, i]`` of a spatial dimension.

    An entry is one if output position ``o`` reads input position ``i`` through kernel
    entry ``k``, else zero. For any convolution, also transposed and with any padding
    mode, the unfolded input is ``U[n, (ci, k), o] = sum_i P[k, o, i] X[n, ci, i]``; in
    several dimensions, there is a pattern for each. A padded position reads the input
    position that it copies, unless padding is zeros.

    Args:
        conv: Hyper-parameters.
        dim: The spatial dimension, counted from zero, or from the end if negative.
        dtype: Dtype of the entries. Default: ``torch.bool``.
        device: Device of the pattern. Default: torch's default device.

    Returns:
        Pattern, ``[K, O, I]``.

    Raises:
        TypeError: If ``dim`` is not an integer, or ``dtype`` not a ``torch.dtype``.
        ValueError: If there is no such dimension.

    >>> Conv.make(1, 1, kernel_size=2, input_size=3).index_pattern(0, torch.int64)
    tensor([[[1, 0, 0],
             [0, 1, 0]],
    <BLANKLINE>
            [[0, 1, 0],
             [0, 0, 1]]])
    """
    number = as_int(_NAME, "dim", dim, minimum=-conv.num_dims)
    if number >= conv.num_dims:
        rule = f"be less than {conv.num_dims}, the number of spatial dimensions"
        raise ValueError(describe(_NAME, "dim", rule, number))
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(describe(_NAME, "dtype", "be a torch.dtype", repr(dtype)))
    own = conv.dims[number]
    kernel, output, input_ = (
        torch.arange(size, device=device)
        for size in (own.kernel_size, own.output_size, own.input_size)
    )
    offset = own.dilation * kernel[:, None, None] - own.padding[0]
    if own.transposed:
        pattern = output[:, None] == own.stride * input_ + offset
    else:
        read = own.stride * output[:, None] + offset
        if conv.padding_mode != "zeros":
            source = source_positions(
                own.input_size, own.padding, conv.padding_mode, read.device
            )
            read = source[read + own.padding[0]]
        pattern = read == input_
    return pattern.to(torch.bool if dtype is None else dtype)
