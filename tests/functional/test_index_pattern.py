"""Index patterns as tensors: what reads what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.reference import dense
from tests.strategies import convs, examples, noise
from tn_extensions import Conv
from tn_extensions.conv import PADDING_MODES


@examples(80)
@given(convs(padding_modes=PADDING_MODES))
def test_unfolded_input_is_input_times_patterns(conv: Conv) -> None:
    x = noise((2, conv.in_channels, *conv.input_size))
    u = torch.from_numpy(x)
    for dim in range(conv.num_dims):
        pattern = conv.index_pattern(dim, torch.float64)
        # the first spatial axis goes, those of kernel and output come last
        u = torch.tensordot(u, pattern, dims=([2], [2]))
    order = [*range(2, u.dim(), 2), *range(3, u.dim(), 2)]
    u = u.permute(0, 1, *order).reshape(2, -1, int(np.prod(conv.output_size)))
    expected = dense.patches(conv, x).reshape(u.shape)
    assert_close(u, torch.from_numpy(expected))


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_entries_are_bools_of_the_inputs_size(mode: Any) -> None:
    conv = Conv.make(1, 1, (3, 2), (5, 7), padding=(2, 1), padding_mode=mode)
    pattern = conv.index_pattern(1)
    assert pattern.dtype == torch.bool
    assert pattern.shape == (2, conv.output_size[1], 7)
    assert torch.equal(pattern, conv.index_pattern(-1))
    assert conv.index_pattern(0, torch.float16).dtype == torch.float16
    assert conv.index_pattern(0, device="meta").device.type == "meta"


@pytest.mark.parametrize(
    ("arguments", "error", "argument"),
    [
        ((2,), ValueError, "dim"),
        ((-3,), ValueError, "dim"),
        ((1.0,), TypeError, "dim"),
        ((0, "float32"), TypeError, "dtype"),
    ],
)
def test_refused(arguments: Any, error: type[Exception], argument: str) -> None:
    with pytest.raises(error) as caught:
        Conv.make(1, 1, 3, (5, 5)).index_pattern(*arguments)
    assert_in_form(caught.value, "Conv.index_pattern", argument)
