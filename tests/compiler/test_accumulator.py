"""Targets are replaced when fresh, else added to."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.strategies import noise_tensor
from tn_extensions.compiler import accumulator
from tn_extensions.compiler.accumulator import Accumulator


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
    value, product = (Accumulator(before.clone(), 0.5, fresh) for _ in range(2))
    value.put(value.out, left @ right.mT)
    product.put_product(product.out, left, right)
    assert_close(value.out, expected)
    assert_close(product.out, expected)


@pytest.mark.parametrize("fresh", [True, False])
def test_onednns_products_are_put(fresh: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """OneDNN takes no target."""
    monkeypatch.setattr(accumulator, "uses_onednn", lambda *_: True)
    left, right = noise_tensor((5, 3)), noise_tensor((4, 3))
    product = Accumulator(torch.ones(5, 4).double(), 0.5, fresh)
    product.put_product(product.out, left, right)
    assert_close(product.out, 0.5 * (left @ right.T) + (not fresh))


def test_views_of_the_target_leave_the_rest_alone() -> None:
    target = Accumulator(torch.ones(4, 4).double(), 2.0, fresh=True)
    target.put(target.out[1:3, ::2], torch.full((2, 2), 3.0).double())
    expected = torch.ones(4, 4).double()
    expected[1:3, ::2] = 6
    assert_close(target.out, expected)
