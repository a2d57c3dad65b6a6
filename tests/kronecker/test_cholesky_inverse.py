"""Inverses by Cholesky's decomposition."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.kronecker.matrices import (
    DAMPINGS,
    assert_inverts,
    assert_is,
    cholesky_inverse,
)


def test_functions() -> None:
    assert_is(*cholesky_inverse())


@pytest.mark.parametrize("damping", DAMPINGS)
def test_inverse(damping: float | Tensor) -> None:
    assert_inverts(*cholesky_inverse(), damping)
