"""The convolutions of nine networks, the ones of the paper (arXiv:2307.02275).

DeepOBS pads 3c3d's strided layers on the right only, as TensorFlow's 'same' does, here
they are padded on both sides: the sizes agree.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from experiments.subjects.networks import Subject
from tn_extensions import Conv, ConvDim

Category = Literal["dense", "mixed dense", "down-sampling", "general"]

TORCHVISION = {
    "alexnet": 224,
    "resnet18": 224,
    "resnext101_32x8d": 224,
    "convnext_base": 224,
    "inception_v3": 299,
    "mobilenet_v2": 224,
}
"""Sides of the images of networks that torchvision has."""

NETWORKS = ("3c3d", "2c2d", "allcnnc", *TORCHVISION)


class Layer(NamedTuple):
    """A convolution of a network.

    Args:
        network: One of :data:`NETWORKS`.
        conv: Its hyper-parameters and the size of its input.
        occurrences: How often it occurs in the network.
    """

    network: str
    conv: Conv
    occurrences: int = 1

    @property
    def name(self) -> str:
        """Its sizes, such as ``64-128x56 k3 s2``."""
        conv, parts = self.conv, []
        for letter, values in (
            ("x", conv.input_size),
            (" k", conv.kernel_size),
            (" s", conv.stride),
            (" d", conv.dilation),
        ):
            text = "x".join(map(str, values if len(set(values)) > 1 else values[:1]))
            parts.append(f"{letter}{text}" if text != "1" or letter == " k" else "")
        groups = "" if conv.groups == 1 else f" g{conv.groups}"
        return f"{conv.in_channels}-{conv.out_channels}{''.join(parts)}{groups}"

    @property
    def category(self) -> Category:
        """Kind of convolution, by which the paper groups them."""
        kinds = {_kind(dim) for dim in self.conv.dims}
        if kinds == {"dense"}:
            return "dense"
        if "down-sampling" in kinds:
            return "down-sampling"
        return "mixed dense" if "dense" in kinds else "general"

    def module(self, device: str = "meta") -> Any:
        """Build the layer of ``torch.nn`` that it is."""
        conv = self.conv
        kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
        return kinds[conv.num_dims](
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=tuple(left for left, _ in conv.padding),  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=False,
            device=device,
        )

    def input_shape(self, batch_size: int) -> tuple[int, ...]:
        """Return the shape of a batch of inputs."""
        return (batch_size, self.conv.in_channels, *self.conv.input_size)

    def output_shape(self, batch_size: int) -> tuple[int, ...]:
        """Return the shape of a batch of outputs."""
        return (batch_size, self.conv.out_channels, *self.conv.output_size)


def _kind(dim: ConvDim) -> Category:
    """Name a dimension's kind; a dense one cuts the whole input into patches."""
    if dim.stride > dim.kernel_size:
        return "down-sampling"
    is_tiled = dim.stride == dim.kernel_size and dim.dilation == 1
    covers = dim.input_size == dim.kernel_size * dim.output_size
    return "dense" if is_tiled and covers and not any(dim.padding) else "general"


@lru_cache
def layers_of(network: str) -> tuple[Layer, ...]:
    """List the different convolutions of a network, in the order of their use."""
    counts = Counter(_convolutions(network))
    return tuple(Layer(network, conv, count) for conv, count in counts.items())


def _convolutions(network: str) -> list[Conv]:
    if network == "2c2d":
        return [
            Conv.make(1, 32, 5, (28, 28), 1, 2),
            Conv.make(32, 64, 5, (14, 14), 1, 2),
        ]
    pixels = TORCHVISION.get(network, 32)
    with torch.device("meta"):
        if network in TORCHVISION:
            # its default initialisation takes a minute
            options = {"init_weights": False} if network == "inception_v3" else {}
            # slow to import
            get_model = import_module("torchvision.models").get_model
            model = get_model(network, **options).eval()
        else:
            model = Subject(network).plain()
    found: list[Conv] = []

    def see(module: nn.Module, inputs: tuple[Tensor]) -> None:
        found.append(Conv.from_module(module, tuple(inputs[0].shape[2:])))

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(see)
    model(torch.empty(1, 3, pixels, pixels, device="meta"))
    return found
