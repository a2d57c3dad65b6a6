"""Layers whose plans are examined, and the arguments of every quantity on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from experiments.contenders import make_input
from experiments.layers import LAYERS
from tn_extensions import Conv, functional
from tn_extensions.compiler import Plan

OF_SEVERAL = ("plan", "plan_together", "together")
"""Functions that are given the names of others."""

QUANTITIES = tuple(name for name in functional.__all__ if name not in OF_SEVERAL)
"""The functions that compute one thing."""

PLANNED: dict[str, Conv] = {
    "3-64x224 k7 s2": Conv.make(3, 64, 7, (224, 224), 2, 3),
    "64x56 k3": Conv.make(64, 64, 3, (56, 56), 1, 1),
    "128x28 k3": Conv.make(128, 128, 3, (28, 28), 1, 1),
    "256x14 k3": Conv.make(256, 256, 3, (14, 14), 1, 1),
    "512x7 k3": Conv.make(512, 512, 3, (7, 7), 1, 1),
    "96x32 k3": Conv.make(96, 96, 3, (32, 32), 1, 1),
    "64-128x56 k3 s2": Conv.make(64, 128, 3, (56, 56), 2, 1),
    "256-512x14 k3 s2": Conv.make(256, 512, 3, (14, 14), 2, 1),
    "64-128x56 k1 s2": Conv.make(64, 128, 1, (56, 56), 2),
    "256x14 k1": Conv.make(256, 256, 1, (14, 14)),
    "3-128x224 k4 s4": Conv.make(3, 128, 4, (224, 224), 4),
    "144x56 k3 depthwise": Conv.make(144, 144, 3, (56, 56), 1, 1, groups=144),
    "128x56 k7 depthwise": Conv.make(128, 128, 7, (56, 56), 1, 3, groups=128),
    "512x28 k3 32 groups": Conv.make(512, 512, 3, (28, 28), 1, 1, groups=32),
    "64x28 k3 d2": Conv.make(64, 64, 3, (28, 28), 1, 2, dilation=2),
    "64x1024 k9": Conv.make(64, 64, 9, 1024, 1, 4),
    "32x8x28x28 k3": Conv.make(32, 32, 3, (8, 28, 28), 1, 1),
}
"""Layers whose plans are compared with all of their candidates."""

COUNTED: dict[str, Conv] = {
    name: PLANNED[name]
    for name in (
        "3-64x224 k7 s2",
        "64x56 k3",
        "256x14 k3",
        "512x7 k3",
        "64-128x56 k3 s2",
        "144x56 k3 depthwise",
        "128x56 k7 depthwise",
        "512x28 k3 32 groups",
    )
} | {"64-192x27 k5": Conv.make(64, 192, 5, (27, 27), 1, 2)}
"""Layers whose operators are counted: 3 to 512 channels, 3x3 to 7x7."""

_TORCHVISION = {
    "alexnet": 224,
    "resnet18": 224,
    "resnext101_32x8d": 224,
    "convnext_base": 224,
    "inception_v3": 299,
    "mobilenet_v2": 224,
}
"""Pixels of networks that torchvision has."""

_NETWORKS = {"patch_mean": "patch_sum"}
"""Networks that are not called as the functions that evaluate them."""


class Case(NamedTuple):
    """A quantity of a layer.

    Args:
        layer: Name of the layer.
        conv: Its hyper-parameters.
        quantity: A function of :mod:`tn_extensions.functional`.
        batch_size: Number of samples.
        num_vectors: Number of vectors per sample, where the quantity has their axis.
    """

    layer: str
    conv: Conv
    quantity: str
    batch_size: int = 8
    num_vectors: int = 10

    @property
    def title(self) -> str:
        """Name of the case: quantity and layer."""
        return f"{self.quantity}, {self.layer}"

    def tensors(self) -> dict[str, Tensor]:
        """Make normally distributed arguments, in the order of the function's."""
        conv, batch = self.conv, (self.batch_size,)
        inputs = (*batch, conv.in_channels, *conv.input_size)
        outputs = (*batch, conv.out_channels, *conv.output_size)
        inner = conv.in_channels // conv.groups * prod(conv.kernel_size)
        outer = conv.out_channels // conv.groups
        shapes = {
            "x": inputs,
            "x_dot": inputs,
            "weight": conv.weight_shape,
            "weight_dot": conv.weight_shape,
            "g": outputs,
            "h": outputs,
            "vectors": conv.weight_shape,
            "S": (self.num_vectors, *outputs),
            "u": (*batch, conv.groups * inner, prod(conv.output_size)),
            "QA": (conv.groups, inner, inner),
            "QB": (conv.groups, outer, outer),
        }
        function = getattr(functional, self.quantity)
        parameters = inspect.signature(function).parameters.values()
        names = [p.name for p in parameters if p.default is p.empty]
        return {
            name: make_input(shapes[name], "cpu", seed)
            for seed, name in enumerate(names)
            if name != "conv"
        }

    def call(self, tensors: dict[str, Tensor]) -> Callable[[], Tensor]:
        """Return what calls the function on its arguments."""
        function, values = getattr(functional, self.quantity), tuple(tensors.values())
        return lambda: function(*values, self.conv)

    def plan(self) -> Plan:
        """Plan what the function evaluates."""
        size = (self.conv.in_channels, *self.conv.input_size)
        x = torch.empty(self.batch_size, *size)  # only its shape matters
        name = _NETWORKS.get(self.quantity, self.quantity)
        has_vectors = name.endswith(("ggn_diagonal", "ggn_gram", "ggn_matvec"))
        arguments = {"num_vectors": self.num_vectors} if has_vectors else {}
        return functional.plan(name, x, self.conv, **arguments)  # type: ignore[arg-type]


def network_layers() -> list[tuple[str, Conv]]:
    """List the convolutions of nine networks, each once."""
    found = {
        Conv.make(1, 32, 5, (28, 28), 1, 2): "2c2d",
        Conv.make(32, 64, 5, (14, 14), 1, 2): "2c2d",
        Conv.make(3, 64, 5, (32, 32)): "3c3d",
        Conv.make(64, 96, 3, (14, 14)): "3c3d",
        Conv.make(96, 128, 3, (6, 6), 1, 1): "3c3d",
    }
    found |= {layer.conv: "allcnnc" for layer in LAYERS if layer.network == "allcnnc"}

    def record(module: nn.Module, inputs: tuple[Tensor], network: str) -> None:
        conv = Conv.from_module(module, tuple(inputs[0].shape[2:]))
        found.setdefault(conv, network)

    get_model = import_module("torchvision.models").get_model
    for network, pixels in _TORCHVISION.items():
        # its default takes a minute
        options = {"init_weights": False} if network == "inception_v3" else {}
        with torch.device("meta"):
            model = get_model(network, **options).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(partial(record, network=network))
        model(torch.empty(1, 3, pixels, pixels, device="meta"))
    return [(f"{network}/{_sizes(conv)}", conv) for conv, network in found.items()]


def _sizes(conv: Conv) -> str:
    sides = [*conv.input_size, *conv.kernel_size, *conv.stride]
    pixels, kernel, stride = ("x".join(map(str, sides[i : i + 2])) for i in (0, 2, 4))
    channels = f"{conv.in_channels}-{conv.out_channels}"
    return f"{channels}, {pixels}, k{kernel} s{stride} g{conv.groups}"
