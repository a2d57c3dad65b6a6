"""Checks of values, with and without values."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch

from tests.fake_cuda import FakeCuda
from tn_extensions.layers.host import holds, is_finite


def test_holds() -> None:
    assert holds(torch.tensor(True)) and not holds(torch.tensor(False))


@pytest.mark.parametrize("value", [inf, -inf, nan])
def test_is_finite(value: float) -> None:
    fine, empty, wrong = torch.ones(2, 3), torch.ones(0, 3), torch.tensor([1.0, value])
    assert is_finite() and is_finite(empty) and is_finite(fine, empty)
    assert not is_finite(wrong) and not is_finite(fine, wrong, empty)


def test_pass_without_values(cuda: FakeCuda) -> None:
    x = cuda.tensor(3)
    assert is_finite(x) and holds((x > 0).all()) and holds((x <= 0).all())
