"""Dense matrices."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.kronecker.matrices import (
    DAMPINGS,
    D,
    assert_inverts,
    assert_is,
    definite,
)
from tn_extensions.kronecker.dense import DenseMatrix


def test_functions() -> None:
    entries = definite(D)
    assert_is(DenseMatrix(entries), entries)


@pytest.mark.parametrize("damping", DAMPINGS)
def test_inverse(damping: float | Tensor) -> None:
    entries = definite(D)
    assert_inverts(DenseMatrix(entries), entries, damping)
