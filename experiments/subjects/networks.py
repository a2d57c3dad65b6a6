"""Whole networks, from arXiv:1902.05653 (DeepOBS), torchvision, and a small UNet.

A faster layer gains only as much as what surrounds it leaves to gain.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from importlib import import_module
from typing import NamedTuple

import torch
from backpack import extend
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse


class Subject(NamedTuple):
    """A network on images of one size.

    Args:
        network: A key of :data:`NUM_CLASSES`.
        pixels: Side of the images.
    """

    network: str
    pixels: int = 32

    @property
    def title(self) -> str:
        """What is measured, in a few words."""
        return f"{self.network}, {self.pixels} pixels"

    def build(self, without: Collection[type[nn.Module]] = ()) -> nn.Module:
        """Build the network as :meth:`plain` does, extended for BackPACK."""
        return extend(self.plain(without), use_converter=self.network in REPLACEABLE)

    def plain(self, without: Collection[type[nn.Module]] = ()) -> nn.Module:
        """Build the network, the same one each time, in evaluation mode.

        Args:
            without: Kinds of modules, of those in :data:`REPLACEABLE`, to express by
                others: ``nn.BatchNorm2d`` is folded into the convolution before it,
                ``nn.AdaptiveAvgPool2d`` becomes ``nn.AvgPool2d``.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self.network in REPLACEABLE:
                return _resnet(self.network, self.pixels, without)
            network = {
                "3c3d": lambda: _three_c_three_d(),
                "allcnnc": lambda: _all_cnn_c(),
                "unet": lambda: UNet(),
                "vgg19": lambda: _vgg19(),
            }[self.network]()
            if self.network == "unet":
                _calibrate(network, self.pixels)
            return network.eval()

    def batch(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Make images and labels, the same ones each time."""
        generator = torch.Generator().manual_seed(batch_size)
        size = (batch_size, 3, self.pixels, self.pixels)
        images = torch.randn(size, generator=generator)
        num_classes = NUM_CLASSES[self.network]
        return images, torch.randint(num_classes, (batch_size,), generator=generator)


NUM_CLASSES = {
    "3c3d": 10,
    "allcnnc": 100,
    "resnet18": 1000,
    "resnet50": 1000,
    "unet": 10,
    "vgg19": 10,
}
REPLACEABLE = dict.fromkeys(
    ("resnet18", "resnet50"), (nn.BatchNorm2d, nn.AdaptiveAvgPool2d)
)
"""Kinds of modules that a network can be built without."""


def small_batch() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Make a tiny network and a batch, for a warm-up.

    Decompositions of a real network's factors would take stock minutes.
    """
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 10))
    return model, (torch.ones(2, 3, 4, 4), torch.zeros(2, dtype=torch.long))


def _three_c_three_d() -> nn.Sequential:
    """Build DeepOBS's 3c3d; its pooling pads on both sides, unlike TensorFlow's."""

    def block(i: int, o: int, k: int, p: int) -> nn.Module:
        conv = nn.Conv2d(i, o, k, padding=p)
        return nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))

    blocks = block(3, 64, 5, 0), block(64, 96, 3, 0), block(96, 128, 3, 1)
    return nn.Sequential(
        *(module for each in blocks for module in each.children()),
        *(nn.Flatten(), nn.Linear(1152, 512), nn.ReLU()),
        *(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)),
    )


def _all_cnn_c() -> nn.Sequential:
    """All-CNN-C (arXiv:1412.6806) on CIFAR-100, without dropout."""
    layers: list[nn.Module] = []
    for in_channels, out_channels, kernel_size, stride, padding in (
        (3, 96, 3, 1, 1),
        (96, 96, 3, 1, 1),
        (96, 96, 3, 2, 1),
        (96, 192, 3, 1, 1),
        (192, 192, 3, 1, 1),
        (192, 192, 3, 2, 1),
        (192, 192, 3, 1, 0),
        (192, 192, 1, 1, 0),
        (192, 100, 1, 1, 0),
    ):
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(6), nn.Flatten())


class UNet(nn.Module):
    """An encoder and a decoder with skip connections, and a head that classifies.

    Args:
        width: Channels of the first level; the next two have twice as many each.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        middle, deep = 2 * width, 4 * width
        up = nn.ConvTranspose2d
        self.first, self.pool = _block(3, width), nn.MaxPool2d(2)
        self.second, self.third = _block(width, middle), _block(middle, deep)
        self.up_middle = up(deep, middle, 2, stride=2)
        self.down_middle = _block(deep, middle)
        self.up_high = up(middle, width, 3, stride=2, padding=1, output_padding=1)
        self.down_high = _block(middle, width)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute class scores of images whose sides are divisible by four."""
        high = self.first(x)
        middle = self.second(self.pool(high))
        x = self.up_middle(self.third(self.pool(middle)))
        x = self.up_high(self.down_middle(torch.cat([x, middle], 1)))
        return self.head(self.down_high(torch.cat([x, high], 1)))


def _block(
    i: int, o: int, k: int = 3, s: int = 1, p: int = 1, bias: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(i, o, k, s, p, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU())


def _vgg19() -> nn.Module:
    """Build torchvision's VGG-19, with the one linear layer it has on small images.

    The factor of ImageNet's first linear layer alone would take 2.5 GB.
    """
    network: nn.Module = import_module("torchvision.models").vgg19()
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(512, 10)
    return network


def _resnet(name: str, pixels: int, without: Collection[type[nn.Module]]) -> nn.Module:
    """Build a ResNet of torchvision."""
    # slow to import, and no requirement of ours: BackPACK requires it (see setup.cfg)
    network: nn.Module = import_module("torchvision.models").get_model(name)
    _calibrate(network, pixels)
    network.eval()
    if nn.BatchNorm2d in without:
        # convolutions get BatchNorm's shift as a bias, which must have a gradient too
        network = fuse(network).requires_grad_(True)
    if nn.AdaptiveAvgPool2d in without:
        # five layers halve the side, rounding up
        network.avgpool = nn.AvgPool2d(-(-pixels // 32))
    return network


def _calibrate(network: nn.Module, pixels: int) -> None:
    """Set BatchNorm's statistics, without which activations grow from block to block.

    The softmax would saturate, and its curvature vanish.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # averages over all batches, here one
    with torch.no_grad():
        network(torch.randn(8, 3, pixels, pixels))


class _Residual(nn.Sequential):
    """Add what its modules compute to the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Add."""
        return x + super().forward(x)


def resnet9() -> nn.Module:
    """Build the ResNet-9 of kronfluence's examples, in evaluation mode."""
    block = partial(_block, bias=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            block(3, 64),
            block(64, 128, 5, 2, 2),
            _Residual(block(128, 128), block(128, 128)),
            block(128, 256),
            nn.MaxPool2d(2),
            _Residual(block(256, 256), block(256, 256)),
            block(256, 128, p=0),
            nn.AdaptiveMaxPool2d((1, 1)),
            nn.Flatten(),
            nn.Linear(128, 10, bias=False),
        ).eval()
