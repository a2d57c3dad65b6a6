"""Targets are replaced when fresh, else added to."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.strategies import noise_tensor
from tn_extensions.compiler.sink import Sink


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_values_and_products_are_scaled(fresh: bool, shape: tuple[int, ...]) -> None:
    left, right = noise_tensor((*shape[:-1], 5)), noise_tensor((*shape[:-2], 5, 4))
    before = torch.full(shape, torch.nan if fresh else 2.0, dtype=torch.float64)
    expected = 0.5 * (left @ right) + (0 if fresh else 2)
    for method in ("put", "put_product"):
        sink = Sink(before.clone(), 0.5, fresh)
        arguments = (left @ right,) if method == "put" else (left, right)
        getattr(sink, method)(sink.out, *arguments)
        assert_close(sink.out, expected)


def test_views_of_the_target_leave_the_rest_alone() -> None:
    sink = Sink(torch.ones(4, 4).double(), 2.0, fresh=True)
    sink.put(sink.out[1:3, ::2], torch.full((2, 2), 3.0).double())
    expected = torch.ones(4, 4).double()
    expected[1:3, ::2] = 6
    assert_close(sink.out, expected)
