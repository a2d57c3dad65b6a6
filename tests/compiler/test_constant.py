"""Constants of plans: made when first used, once per dtype and device."""

from __future__ import annotations

import numpy as np
import torch

from tn_extensions.compiler.constant import Constant


def test_constant_is_made_late_and_kept() -> None:
    calls = []

    def make() -> np.ndarray:
        calls.append(None)
        return np.eye(3)

    constant = Constant(make)
    assert not calls
    single = constant.like(torch.zeros(1))
    assert single.dtype == torch.float32 and constant.like(torch.ones(2)) is single
    assert constant.like(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert len(calls) == 2
    assert torch.equal(single, torch.eye(3))
