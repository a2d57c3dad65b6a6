"""Extensions in single precision and under autocast."""

from __future__ import annotations

import pytest
import torch
from backpack import backpack, extend
from torch import nn

from tests.backpack.run import targets
from tests.backpack.suite import (
    names_with,
    saved,
)
from tests.backpack.test_backward import EVERY, assert_near, small
from tn_extensions import backpack as ours


@pytest.mark.parametrize("name", list(EVERY))
def test_float32(name: str) -> None:
    model, x = small()
    (wanted,) = saved(model, [EVERY[name](ours)], x)
    (actual,) = saved(model.float(), [EVERY[name](ours)], x.float())
    assert_near(actual, wanted, 1e-4, torch.float32)


@pytest.mark.parametrize("name", [n for n in EVERY if "Hessian" not in n])
@pytest.mark.parametrize("way", ["autocast", "module"])
def test_bfloat16(name: str, way: str) -> None:
    """Squares and sums are of float32; gradients have the parameter's dtype."""
    model, x = small()
    (wanted,) = saved(model, [EVERY[name](ours)], x)
    model, x = model.float(), x.float()
    extension = EVERY[name](ours)
    if way == "module":
        dtype = torch.bfloat16 if extension.in_parameter_dtype else torch.float32
        (actual,) = saved(model.bfloat16(), [extension], x.bfloat16())
    else:
        dtype = torch.float32
        criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = criterion(model(x), targets(len(x)))
        torch.manual_seed(1)
        with backpack(extension):
            loss.backward()
        actual = names_with(model, extension.savefield)
    assert_near(actual, wanted, 0.1, dtype)
