"""torchvision's networks, untrained, and images as small as they allow."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

NAMES = [
    "vit_b_16",
    "swin_t",
    "resnet18",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "convnext_tiny",
    "densenet121",
    "googlenet",
    "shufflenet_v2_x1_0",
    "deeplabv3_mobilenet_v3_large",
    "r3d_18",
    "maxvit_t",
]
CLASSES = 3


class Segmentation(nn.Module):
    """Mean logits of a segmentation network, in place of a dictionary of maps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.model(x)["out"].mean((2, 3)))


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Make a network, and the shape of an image."""
    if name == "maxvit_t":
        # as torchvision builds it, but for smaller windows on smaller images
        sizes: dict[str, Any] = {"input_size": (64, 64), "partition_size": 2}
        model: nn.Module = torchvision.models.MaxVit(
            stem_channels=64,
            block_channels=[64, 128, 256, 512],
            block_layers=[2, 2, 5, 2],
            head_dim=32,
            stochastic_depth_prob=0.2,
            num_classes=CLASSES,
            **sizes,
        )
        return model, (3, 64, 64)
    options: dict[str, dict[str, Any]] = {
        "vit_b_16": {"image_size": 32},
        "googlenet": {"aux_logits": False, "init_weights": False},
        "deeplabv3_mobilenet_v3_large": {"weights_backbone": None},
    }
    model = torchvision.models.get_model(
        name, weights=None, num_classes=CLASSES, **options.get(name, {})
    )
    if name.startswith("deeplab"):
        model = Segmentation(model)
    return model, (3, 2, 16, 16) if name == "r3d_18" else (3, 32, 32)
