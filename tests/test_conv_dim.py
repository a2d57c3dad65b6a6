"""One dimension of a convolution, and arguments that speak of several."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from tests.messages import assert_in_form
from tests.test_conv import MAKE
from tn_extensions import Conv, ConvDim


def test_scalars_broadcast() -> None:
    conv = Conv.make(**MAKE, stride=2, padding=1, dilation=2)
    assert conv.kernel_size == (3, 3)
    assert conv.stride == conv.dilation == (2, 2)
    assert conv.padding == ((1, 1), (1, 1))
    assert Conv.make(1, 1, 3, 5).num_dims == 1


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_pads_the_right_more_and_keeps_the_size(
    kernel_size: int, dilation: int
) -> None:
    conv = Conv.make(1, 1, kernel_size, 9, padding="same", dilation=dilation)
    total = dilation * (kernel_size - 1)
    assert conv.padding == ((total // 2, (total + 1) // 2),)
    assert conv.output_size == (9,)
    module = nn.Conv1d(1, 1, kernel_size, padding="same", dilation=dilation)
    assert Conv.from_module(module, 9) == conv


def test_valid_means_no_padding() -> None:
    assert Conv.make(**MAKE, padding="valid") == Conv.make(**MAKE, padding=0)


def test_lists_are_as_good_as_tuples() -> None:
    lists = Conv.make(4, 6, [3, 3], [8, 7], padding=[[1, 2], [0, 1]])
    assert lists == Conv.make(4, 6, (3, 3), (8, 7), padding=((1, 2), (0, 1)))
    assert hash(lists) is not None


def test_dimensions_agree_on_being_transposed() -> None:
    with pytest.raises(ValueError) as caught:
        Conv(1, 1, (ConvDim(4, 3), ConvDim(4, 3, transposed=True)))
    assert_in_form(caught.value, "Conv", "dims")


@pytest.mark.parametrize("padding", [1, (1,), (1, 2, 3)])
def test_padding_is_a_pair(padding: Any) -> None:
    with pytest.raises(ValueError) as caught:
        ConvDim(4, 3, padding=padding)
    assert_in_form(caught.value, "ConvDim", "padding")
