"""Padding that holds data, and its adjoint."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch.nn import functional as F
from torch.testing import assert_close

from tests.strategies import convs, examples, noise_tensor
from tn_extensions.conv import Conv, PaddingMode
from tn_extensions.padding import pad, source_position, source_positions, unpad

MODES: tuple[PaddingMode, ...] = ("reflect", "replicate", "circular")


@examples(60)
@given(convs(max_dims=4, transposed=False, padding_modes=MODES))
def test_adjoint(conv: Conv) -> None:
    x = noise_tensor((2, conv.in_channels, *conv.input_size))
    padded = pad(x, conv)
    assert padded.shape[2:] == conv.explicitly_padded.input_size
    y = noise_tensor((*padded.shape, 1)).squeeze(-1)
    assert_close((padded * y).sum(), (x * unpad(y, conv)).sum())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [(0, 0), (2, 1), (3, 3)])
def test_values_are_copied_from_where_torch_does(
    mode: PaddingMode, padding: tuple[int, int]
) -> None:
    x = noise_tensor((1, 1, 4))
    expected = F.pad(x, padding, mode=mode)
    assert torch.equal(x[..., source_positions(4, padding, mode)], expected)
    positions = range(-padding[0], 4 + padding[1])
    found = [source_position(position, 4, mode) for position in positions]
    assert torch.equal(x[..., found], expected)


def test_zeros_are_no_data() -> None:
    x = noise_tensor((2, 3, 5))
    conv = Conv.make(3, 1, 3, 5, padding=1)
    assert pad(x, conv) is x and unpad(x, conv) is x
