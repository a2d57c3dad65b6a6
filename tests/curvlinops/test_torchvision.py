"""KFAC of torchvision's networks: it works, or names the layer that it cannot do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.torchvision_models import NAMES, build
from tn_extensions import curvlinops as ours
from tn_extensions.layers.module import SUPPORTED

REFUSED = {"vit_b_16": "encoder.layers.encoder_layer_0.self_attention.out_proj"}
"""Layers whose parameters torch uses where nobody sees it: the first ones."""


@pytest.mark.parametrize("name", NAMES)
def test_torchvision(name: str) -> None:
    model, shape = build(name)
    refused = REFUSED.get(name)
    model.eval()
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, SUPPORTED)
    }

    def operator(names: Any) -> Any:
        params = [p for n in names for p in layers[n].parameters(recurse=False)]
        data = [(torch.rand(2, *shape), torch.tensor([0, 2]))]
        loss = nn.CrossEntropyLoss()
        return ours.KFACLinearOperator(
            model, loss, params, data, check_deterministic=False
        )

    chosen = set(layers)
    if refused is not None:
        with pytest.raises(ValueError, match=f"layer '{refused}' must be called"):
            operator(layers).compute_kronecker_factors()
        chosen = {n for n in layers if not n.endswith(refused.rsplit(".", 1)[1])}
    op = operator(n for n in layers if n in chosen)
    op.compute_kronecker_factors()
    assert set(op._gradient_covariances) == chosen
    assert float(op.trace) > 0
