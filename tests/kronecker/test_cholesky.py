"""Cholesky decompositions that fall back to double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tn_extensions.kronecker.cholesky import cholesky


def test_single_precision_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.linalg.cholesky

    def only_double(matrices: Tensor) -> Tensor:
        if matrices.dtype == torch.float32:  # whether this fails is up to rounding
            raise torch.linalg.LinAlgError("not positive definite")
        return exact(matrices)

    monkeypatch.setattr(torch.linalg, "cholesky", only_double)
    matrices = torch.tensor([[[4.0, 2.0], [2.0, 5.0]]])
    with pytest.warns(UserWarning, match="Retrying in double precision"):
        found = cholesky(matrices)
    assert found.dtype == torch.float32
    assert_close(found @ found.mT, matrices)
    with pytest.raises(torch.linalg.LinAlgError):
        cholesky(matrices, retry_double_precision=False)


@pytest.mark.filterwarnings("ignore:Failed to compute Cholesky")
def test_indefinite_matrices_are_refused() -> None:
    for options in ({}, {"retry_double_precision": False}):
        for dtype in (torch.float32, torch.float64):
            with pytest.raises(torch.linalg.LinAlgError):
                cholesky(-torch.eye(3, dtype=dtype)[None], **options)
