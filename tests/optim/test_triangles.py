"""Symmetric matrices of which one triangle is sent."""

from __future__ import annotations

import pytest
import torch

from tn_extensions.optim.triangles import pack, unpack


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_triangles(size: int) -> None:
    matrices = torch.randn(3, size, size)
    matrices = matrices + matrices.mT
    packed = pack(matrices)
    assert packed.numel() <= 3 * (size + 1) ** 2 / 2
    assert torch.equal(unpack(packed), matrices)
