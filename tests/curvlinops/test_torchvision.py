"""KFAC of torchvision's networks: it works, or names the layer that it cannot do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tn_extensions import curvlinops as ours
from tn_extensions.kronecker.layers import SUPPORTED

CASES: dict[str, tuple[tuple[int, ...], str | None]] = {
    # shapes of the images, as small as the network allows; a layer without factors
    "vit_b_16": ((3, 32, 32), "encoder.layers.encoder_layer_0.self_attention.out_proj"),
    "swin_t": ((3, 32, 32), "features.1.0.attn.qkv"),
    "resnet18": ((3, 32, 32), None),
    "mobilenet_v3_small": ((3, 32, 32), None),
    "efficientnet_b0": ((3, 32, 32), None),
    "convnext_tiny": ((3, 32, 32), None),
    "densenet121": ((3, 32, 32), None),
    "googlenet": ((3, 32, 32), None),
    "shufflenet_v2_x1_0": ((3, 32, 32), None),
    "deeplabv3_mobilenet_v3_large": ((3, 32, 32), None),
    "r3d_18": ((3, 2, 16, 16), None),
    "maxvit_t": ((3, 224, 224), None),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "vit_b_16": {"image_size": 32},
    "googlenet": {"aux_logits": False, "init_weights": False},
    "deeplabv3_mobilenet_v3_large": {"weights_backbone": None},
}


class First(nn.Module):
    """A segmentation network, of one pixel: what it returns is a dictionary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.model(x)["out"].mean((2, 3)))


@pytest.mark.parametrize("name", CASES)
def test_torchvision(name: str) -> None:
    shape, refused = CASES[name]
    options = {"weights": None, "num_classes": 3} | OPTIONS.get(name, {})
    model = torchvision.models.get_model(name, **options).eval()
    if name.startswith("deeplab"):
        model = First(model)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, SUPPORTED)
    }

    def build(names: Any) -> Any:
        params = [p for n in names for p in layers[n].parameters(recurse=False)]
        data = [(torch.rand(2, *shape), torch.tensor([0, 2]))]
        loss = nn.CrossEntropyLoss()
        return ours.KFACLinearOperator(
            model, loss, params, data, check_deterministic=False
        )

    chosen = set(layers)
    if refused is not None:
        with pytest.raises(ValueError, match=f"layer '{refused}' must be called"):
            build(layers).compute_kronecker_factors()
        # attention multiplies by the parameters of layers that it does not call
        own = refused.rsplit(".", 1)[1]
        chosen = {n for n in layers if not n.endswith((own, ".attn.proj"))}
    op = build(n for n in layers if n in chosen)
    op.compute_kronecker_factors()
    assert set(op._gradient_covariances) == chosen
    assert float(op.trace) > 0
