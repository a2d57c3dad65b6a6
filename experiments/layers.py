"""Convolutions of real networks, and how often each of them occurs.

The tables are literal, so that nothing but torch is needed to measure them; a test
compares them with torchvision's models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from tn_extensions import Conv

Family = Literal[
    "3x3 stride 1",
    "3x3 stride 2",
    "1x1",
    "7x7 first",
    "depthwise",
    "patchify",
    "dilated",
    "transposed",
]


@dataclass(frozen=True)
class Layer:
    """One convolution of a network, on inputs of one size.

    Args:
        name: Unique name.
        network: The network it comes from, ``"single"`` if from none.
        family: Layers of one family are averaged in reports.
        make_module: Builds the ``torch.nn`` module; takes ``device=``.
        input_size: Spatial size of the module's input.
        count: How often the layer occurs in its network.
    """

    name: str
    network: str
    family: Family
    make_module: partial[nn.Conv2d] | partial[nn.ConvTranspose2d]
    input_size: tuple[int, ...]
    count: int = 1

    @property
    def conv(self) -> Conv:
        """The hyper-parameters."""
        # the meta device spares the weights, which no input-based factor needs
        return Conv.from_module(self.make_module(device="meta"), self.input_size)

    def input_shape(self, batch_size: int) -> tuple[int, ...]:
        """Shape of a batch of inputs."""
        return (batch_size, self.conv.in_channels, *self.input_size)


def _layer(
    network: str,
    family: Family,
    channels: tuple[int, int],
    pixels: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    transposed: bool = False,
    count: int = 1,
) -> Layer:
    """Describe a square two-dimensional layer and name it after its sizes."""
    in_channels, out_channels = channels
    name = f"{network}/{in_channels}-{out_channels}x{pixels}-k{kernel_size}"
    for letter, value in (("s", stride), ("d", dilation), ("g", groups)):
        if value != 1:
            name += f"-{letter}{value}"
    make_module = partial(
        nn.ConvTranspose2d if transposed else nn.Conv2d,
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    return Layer(name, network, family, make_module, (pixels, pixels), count)


def _resnet18() -> tuple[Layer, ...]:
    """All convolutions of ResNet-18 on 224 pixels."""
    layer = partial(_layer, "resnet18")
    three = partial(layer, kernel_size=3, padding=1)
    return (
        layer("7x7 first", (3, 64), 224, 7, stride=2, padding=3),
        three("3x3 stride 1", (64, 64), 56, count=4),
        three("3x3 stride 2", (64, 128), 56, stride=2),
        layer("1x1", (64, 128), 56, 1, stride=2),
        three("3x3 stride 1", (128, 128), 28, count=3),
        three("3x3 stride 2", (128, 256), 28, stride=2),
        layer("1x1", (128, 256), 28, 1, stride=2),
        three("3x3 stride 1", (256, 256), 14, count=3),
        three("3x3 stride 2", (256, 512), 14, stride=2),
        layer("1x1", (256, 512), 14, 1, stride=2),
        three("3x3 stride 1", (512, 512), 7, count=3),
    )


def _all_cnn_c() -> tuple[Layer, ...]:
    """All convolutions of All-CNN-C on CIFAR-100 (arXiv:1412.6806, as in DeepOBS).

    Strided layers pad by one pixel on both sides, where TensorFlow's 'same' (and
    DeepOBS after it) pads on the right only; the sizes agree.
    """
    layer = partial(_layer, "allcnnc")
    three = partial(layer, kernel_size=3, padding=1)
    return (
        three("3x3 stride 1", (3, 96), 32),
        three("3x3 stride 1", (96, 96), 32),
        three("3x3 stride 2", (96, 96), 32, stride=2),
        three("3x3 stride 1", (96, 192), 16),
        three("3x3 stride 1", (192, 192), 16),
        three("3x3 stride 2", (192, 192), 16, stride=2),
        layer("3x3 stride 1", (192, 192), 8, 3),
        layer("1x1", (192, 192), 6, 1),
        layer("1x1", (192, 100), 6, 1),
    )


def _mobilenet_v2() -> tuple[Layer, ...]:
    """The depthwise convolutions of MobileNetV2 on 224 pixels."""
    table = (
        # channels, pixels, stride, count
        (32, 112, 1, 1),
        (96, 112, 2, 1),
        (144, 56, 1, 1),
        (144, 56, 2, 1),
        (192, 28, 1, 2),
        (192, 28, 2, 1),
        (384, 14, 1, 4),
        (576, 14, 1, 2),
        (576, 14, 2, 1),
        (960, 7, 1, 3),
    )
    return tuple(
        _layer(
            "mobilenetv2",
            "depthwise",
            (channels, channels),
            pixels,
            kernel_size=3,
            stride=stride,
            padding=1,
            groups=channels,
            count=count,
        )
        for channels, pixels, stride, count in table
    )


def _convnext_base() -> tuple[Layer, ...]:
    """All convolutions of ConvNeXt-base on 224 pixels.

    The network computes in channels-last order; here inputs are contiguous.
    """
    layer = partial(_layer, "convnextbase")

    def depthwise(channels: int, pixels: int, count: int) -> Layer:
        return layer(
            "depthwise",
            (channels, channels),
            pixels,
            7,
            padding=3,
            groups=channels,
            count=count,
        )

    return (
        layer("patchify", (3, 128), 224, 4, stride=4),
        depthwise(128, 56, count=3),
        layer("patchify", (128, 256), 56, 2, stride=2),
        depthwise(256, 28, count=3),
        layer("patchify", (256, 512), 28, 2, stride=2),
        depthwise(512, 14, count=27),
        layer("patchify", (512, 1024), 14, 2, stride=2),
        depthwise(1024, 7, count=3),
    )


LAYERS: tuple[Layer, ...] = (
    *_resnet18(),
    *_all_cnn_c(),
    *_mobilenet_v2(),
    *_convnext_base(),
    _layer("single", "dilated", (64, 64), 28, 3, padding=2, dilation=2),
    _layer("single", "transposed", (64, 32), 28, 4, 2, padding=1, transposed=True),
)


def select(patterns: list[str] | None) -> tuple[Layer, ...]:
    """Layers whose name contains one of the patterns; all if there are none.

    Raises:
        ValueError: If no layer is left.
    """
    if not patterns:
        return LAYERS
    chosen = tuple(
        layer for layer in LAYERS if any(pattern in layer.name for pattern in patterns)
    )
    if not chosen:
        names = ", ".join(layer.name for layer in LAYERS)
        raise ValueError(f"select: no layer's name contains {patterns}, from {names}.")
    return chosen


def smallest_of_each_family() -> tuple[Layer, ...]:
    """One layer a family, with the fewest input elements, for a quick look."""
    chosen: dict[str, Layer] = {}
    for layer in LAYERS:
        best = chosen.get(layer.family)
        if best is None or _num_inputs(layer) < _num_inputs(best):
            chosen[layer.family] = layer
    return tuple(chosen.values())


def _num_inputs(layer: Layer) -> int:
    _, channels, *size = layer.input_shape(1)
    elements = channels
    for pixels in size:
        elements *= pixels
    return elements
