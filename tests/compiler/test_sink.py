"""Targets are replaced when fresh, else added to."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.strategies import noise_tensor
from tn_extensions.compiler.sink import Sink


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_products_are_scaled(
    fresh: bool, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    *lead, rows, columns = shape
    left = noise_tensor((*lead, rows, 5), dtype)
    right = noise_tensor((*lead, columns, 5), dtype)
    before = torch.full(shape, torch.nan if fresh else 2.0, dtype=dtype)
    expected = 0.5 * (left @ right.mT) + (0 if fresh else 2)
    value, product = (Sink(before.clone(), 0.5, fresh) for _ in range(2))
    value.put(value.out, left @ right.mT)
    product.put_product(product.out, left, right)
    assert_close(value.out, expected)
    assert_close(product.out, expected)


def test_views_of_the_target_leave_the_rest_alone() -> None:
    sink = Sink(torch.ones(4, 4).double(), 2.0, fresh=True)
    sink.put(sink.out[1:3, ::2], torch.full((2, 2), 3.0).double())
    expected = torch.ones(4, 4).double()
    expected[1:3, ::2] = 6
    assert_close(sink.out, expected)
