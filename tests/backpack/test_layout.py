"""Memory formats change no value."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.strategies import noise_tensor
from tn_extensions.backpack.layout import channels_last, laid_out_like

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_axes", [3, 4, 5])
def test_channels_last(num_axes: int, dtype: torch.dtype) -> None:
    x = noise_tensor((2, 3, 4, 5, 6)[:num_axes], dtype)
    result = channels_last(x)
    assert_close(result, x)
    if num_axes > 3 and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        assert result.is_contiguous(memory_format=FORMATS[num_axes])
    else:
        assert result is x


@pytest.mark.parametrize("num_axes", [2, 3, 4, 5])
def test_laid_out_like(num_axes: int) -> None:
    x = noise_tensor((2, 3, 4, 5, 6)[:num_axes])
    assert laid_out_like(x, torch.zeros_like(x)) is x
    if num_axes in FORMATS:
        other = torch.zeros_like(x, memory_format=FORMATS[num_axes])
        result = laid_out_like(x, other)
        assert result.stride() == other.stride()
        assert_close(result, x)
