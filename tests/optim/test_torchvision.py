"""Steps of torchvision's networks."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from tests.torchvision_models import CLASSES, NAMES, build
from tn_extensions.optim import KFACPreconditioner

UNCALLED = {"vit_b_16": "out_proj", "swin_t": "attn"}
"""Layers whose parameters torch uses without calling them."""


@pytest.mark.parametrize("name", NAMES)
def test_three_steps(name: str) -> None:
    torch.manual_seed(0)
    model, shape = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = KFACPreconditioner(model, damping=0.1, inverse_update_steps=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, y = torch.rand(2, *shape), torch.tensor([0, CLASSES - 1])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            found.step()
            optimizer.step()
    assert (found.steps, found.skipped) == (3, 0)
    assert all(p.isfinite().all() for p in model.parameters())
    own = UNCALLED.get(name)
    messages = [str(each.message) for each in seen if "KFAC" in str(each.message)]
    assert len(messages) == (own is not None)
    for layer in found._layers.values():
        has_gradient = bool(layer.gradients)
        is_uncalled = own is not None and own in layer.name
        assert bool(layer.averages) == (has_gradient and not is_uncalled)
        assert not is_uncalled or repr(layer.name) in messages[0]
