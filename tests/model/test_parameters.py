"""Parameters that are chosen, and models whose data depend on each other."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.testing import assert_close

from tests.model import reference
from tests.model.networks import (
    Frames,
    Normalised,
    Tied,
    model_and_data,
)
from tests.model.test_norms import refused
from tn_extensions.model import per_sample_grad_norms


def test_some_parameters() -> None:
    model, x, y = model_and_data(Normalised)
    loss = nn.CrossEntropyLoss()
    expected = reference.norms(model, loss, x, y)
    model[0].weight.requires_grad_(False)
    for params in (
        ["0.weight", "0.bias", "1.weight"],
        (model[0].weight, model[0].bias, model[1].weight),
    ):
        options: dict[str, Any] = {"params": params, "per_parameter": True}
        found = per_sample_grad_norms(model, loss, x, y, **options)
        assert_close(found, {name: expected[name] for name in ("0.bias", "1.weight")})
    found = per_sample_grad_norms(model, loss, x, y, per_parameter=True)
    assert found.keys() == expected.keys() - {"0.weight"}
    # a name beside the one that the model gives first
    tied, x, y = model_and_data(Tied)
    found = per_sample_grad_norms(
        tied, loss, x, y, params=["second.weight"], per_parameter=True
    )
    assert list(found) == ["first.weight"]


def test_data_that_depend_on_each_other() -> None:
    model, x, y = model_and_data(Normalised)
    loss = nn.CrossEntropyLoss()
    before = model[1].running_mean.clone()
    assert "model.eval()" in refused(ValueError, "layer '1'", model.train(), loss, x, y)
    assert torch.equal(model[1].running_mean, before)
    frames, x, y = model_and_data(partial(Frames, "neither"))
    argument = "rows of the input of layer 'linear.weight'"
    assert "another order" in refused(ValueError, argument, frames, loss, x, y)
