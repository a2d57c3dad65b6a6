"""Hypothesis strategies for convolutions over the whole grid of hyper-parameters."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from tn_extensions.conv import PADDING_MODES, Conv, ConvDim, PaddingMode

LIMITS = {1: 6, 2: 3, 3: 1, 4: 1}
"""By number of dimensions: how far sizes exceed the smallest possible ones."""

BATCHES = st.sampled_from([1, 2, 3])
"""Batch sizes of networks; the empty batch never gets as far as a plan's steps."""

MODULES = {
    False: (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    True: (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
}


def examples(count: int) -> settings:
    """So many examples, whatever time each takes."""
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def noise(shape: Sequence[int]) -> NDArray[np.float64]:
    """Make normal noise, the same for the same shape."""
    seed = zlib.crc32(repr(tuple(shape)).encode())
    return np.random.default_rng(seed).standard_normal(tuple(shape))


def noise_tensor(shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Make normal noise as a tensor."""
    return torch.from_numpy(noise(shape)).to(dtype)


def smallest_input(dim: dict[str, Any]) -> int:
    """Return the smallest input size with at least one output."""
    span = dim["dilation"] * (dim["kernel_size"] - 1) + 1
    missing = sum(dim["padding"]) - span - dim["output_padding"]
    if dim["transposed"]:
        return max(1, -(-(missing + 1) // dim["stride"]) + 1)
    return max(1, span - sum(dim["padding"]))


@st.composite
def conv_dims(
    draw: st.DrawFn,
    transposed: bool = False,
    limit: int = 6,
    padding_mode: PaddingMode = "zeros",
) -> ConvDim:
    """One dimension: uneven, 'same' and oversized padding included."""
    few = min(limit, 3)
    dim: dict[str, Any] = {
        "kernel_size": draw(st.integers(1, few + 1)),
        "stride": draw(st.integers(1, few)),
        "dilation": draw(st.integers(1, few)),
        "transposed": transposed,
        "output_padding": 0,
    }
    same = dim["dilation"] * (dim["kernel_size"] - 1)
    pairs = st.tuples(st.integers(0, few + 1), st.integers(0, few + 1))
    dim["padding"] = draw(
        pairs | st.just((0, 0)) | st.just((same // 2, same - same // 2))
    )
    if transposed:
        most = max(dim["stride"], dim["dilation"]) - 1
        dim["output_padding"] = draw(st.integers(0, most))
    least = smallest_input(dim)
    if padding_mode in ("reflect", "circular"):
        least = max(least, max(dim["padding"]) + 1)
    return ConvDim(input_size=least + draw(st.integers(0, limit)), **dim)


@st.composite
def convs(
    draw: st.DrawFn,
    max_dims: int = 3,
    min_dims: int = 1,
    transposed: bool | None = None,
    padding_modes: Sequence[PaddingMode] = ("zeros",),
) -> Conv:
    """Convolutions of several dimensions, up to depthwise."""
    num_dims = draw(st.integers(min_dims, max_dims))
    if transposed is None:
        transposed = draw(st.booleans())
    mode = "zeros" if transposed else draw(st.sampled_from(list(padding_modes)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    dims = tuple(
        draw(conv_dims(transposed, LIMITS[num_dims], mode)) for _ in range(num_dims)
    )
    channels = [groups * draw(st.integers(1, 2)) for _ in range(2)]
    return Conv(channels[0], channels[1], dims, groups, mode)


@st.composite
def modules(
    draw: st.DrawFn, transposed: bool | None = None, max_dims: int = 3
) -> tuple[nn.Module, tuple[int, ...]]:
    """Draw a module of ``torch.nn`` in float64 and a spatial input size for it."""
    if transposed is None:
        transposed = draw(st.booleans())
    modes = ("zeros",) if transposed else PADDING_MODES
    conv = draw(convs(max_dims, transposed=transposed, padding_modes=modes))
    options: dict[str, Any] = {
        "stride": conv.stride,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": draw(st.booleans()),
        "padding_mode": conv.padding_mode,
    }
    sizes = conv.input_size
    if transposed:
        options |= {"output_padding": conv.output_padding}
        options |= {"padding": tuple(max(pair) for pair in conv.padding)}
    elif draw(st.integers(0, 3)) == 0:
        options |= {"stride": 1, "padding": draw(st.sampled_from(["same", "valid"]))}
        spans = (
            d * (k - 1) + 1
            for k, d in zip(conv.kernel_size, conv.dilation, strict=True)
        )
        sizes = tuple(map(max, sizes, spans))
    else:
        options |= {"padding": tuple(max(pair) for pair in conv.padding)}
    if transposed:
        sizes = tuple(
            max(
                dim.input_size,
                smallest_input(
                    {
                        "kernel_size": dim.kernel_size,
                        "stride": dim.stride,
                        "dilation": dim.dilation,
                        "padding": (max(dim.padding),) * 2,
                        # so that any output_size is positive
                        "output_padding": 0,
                        "transposed": True,
                    }
                ),
            )
            for dim in conv.dims
        )
    make = MODULES[transposed][conv.num_dims - 1]
    module = make(conv.in_channels, conv.out_channels, conv.kernel_size, **options)
    return module.double(), sizes


def module_input(
    module: Any, sizes: Sequence[int], batch_size: int, dtype: Any = torch.float64
) -> Tensor:
    """Noise of the shape that a module takes."""
    return noise_tensor((batch_size, module.in_channels, *sizes), dtype)


def with_stale_attributes(model: nn.Module) -> nn.Module:
    """Give layers other numbers of channels, which only their kernels tell then.

    So are those whose weight was exchanged (pruned, say): ``forward`` never looks.
    """
    for module in model.modules():
        for name in ("in_channels", "out_channels", "in_features", "out_features"):
            if hasattr(module, name):
                setattr(module, name, 1)
        if hasattr(module, "kernel_size") and hasattr(module, "transposed"):
            module.kernel_size = (1,) * (module.weight.dim() - 2)
    return model
