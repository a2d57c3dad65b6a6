"""Batches, losses and numbers of draws that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.messages import assert_in_form
from tests.model.networks import (
    Normalised,
    Tied,
    model_and_data,
)
from tn_extensions.model import ggn_diagonal


def refused(kind: type[Exception], argument: str, *args: Any, **options: Any) -> str:
    with pytest.raises(kind) as error:
        ggn_diagonal(*args, **options)
    owner = str(error.value).split(":")[0]
    assert_in_form(error.value, owner, argument)
    return owner


def test_bad_input() -> None:
    model, x, y = model_and_data(Tied)
    loss, data = nn.CrossEntropyLoss(), (x, y)

    def check(kind: type[Exception], argument: str, *args: Any, **options: Any) -> None:
        assert refused(kind, argument, *args, **options) == "ggn_diagonal"

    check(NotImplementedError, "loss", model, nn.NLLLoss(), data)
    check(NotImplementedError, "loss", model, nn.functional.cross_entropy, data)
    check(ValueError, "loss", model, nn.MSELoss(reduction="none"), data)
    check(ValueError, "fisher_type", model, loss, data, fisher_type="empirical")
    check(ValueError, "mc_samples", model, loss, data, mc_samples=2)
    check(TypeError, "mc_samples", model, loss, data, mc_samples=1.0)
    mc = {"fisher_type": "mc", "mc_samples": 0}
    check(ValueError, "mc_samples", model, loss, data, **mc)
    check(ValueError, "data", model, loss, [])
    check(TypeError, "data", model, loss, [x])
    check(TypeError, "data", model, loss, x)
    check(ValueError, "targets", model, loss, (x, y[:2]))
    check(ValueError, "the model's output", model, loss, (x * torch.nan, y))
    flat = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double()
    check(ValueError, "outputs", flat, nn.MSELoss(), (x, y.double()))
    check(ValueError, "layer '1'", model_and_data(Normalised)[0].train(), loss, data)
