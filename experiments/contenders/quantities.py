"""Every quantity of a layer: its arguments, its call and its plan."""

from __future__ import annotations

import inspect
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.contenders.convolutions import normal
from experiments.harness.case import Call
from experiments.subjects.layers import Layer
from tn_extensions import Conv, functional
from tn_extensions.compiler import Plan

QUANTITIES = tuple(
    name
    for name in functional.__all__
    if name not in ("plan", "plan_together", "together")  # they take others' names
)
"""The functions that compute one thing."""

MAIN = (
    "kfac_expand",
    "kfac_reduce",
    "per_sample_grad",
    "per_sample_grad_norm",
    "ggn_diagonal",
    "ggn_gram",
)
"""The quantities that toolkits need."""

VARIOUS = tuple(
    Layer("various", conv)
    for conv in (
        Conv.make(3, 64, 7, (224, 224), 2, 3),
        Conv.make(64, 64, 3, (56, 56), 1, 1),
        Conv.make(128, 128, 3, (28, 28), 1, 1),
        Conv.make(256, 256, 3, (14, 14), 1, 1),
        Conv.make(512, 512, 3, (7, 7), 1, 1),
        Conv.make(96, 96, 3, (32, 32), 1, 1),
        Conv.make(64, 128, 3, (56, 56), 2, 1),
        Conv.make(256, 512, 3, (14, 14), 2, 1),
        Conv.make(64, 128, 1, (56, 56), 2),
        Conv.make(256, 256, 1, (14, 14)),
        Conv.make(3, 128, 4, (224, 224), 4),
        Conv.make(144, 144, 3, (56, 56), 1, 1, groups=144),
        Conv.make(128, 128, 7, (56, 56), 1, 3, groups=128),
        Conv.make(512, 512, 3, (28, 28), 1, 1, groups=32),
        Conv.make(64, 64, 3, (28, 28), 1, 2, dilation=2),
        Conv.make(64, 64, 9, 1024, 1, 4),
        Conv.make(32, 32, 3, (8, 28, 28), 1, 1),
    )
)
"""Layers of many kinds, with one to three dimensions."""

SMALL = Layer("small", Conv.make(2, 3, 3, (5, 5), 1, 1))
"""A layer with next to no arithmetic."""


class Asked(NamedTuple):
    """A quantity of a layer.

    Args:
        quantity: A function of :mod:`tn_extensions.functional`.
        layer: The layer.
        batch_size: Number of samples.
        num_vectors: Number of vectors per sample, where the quantity has their axis.
    """

    quantity: str
    layer: Layer
    batch_size: int = 8
    num_vectors: int = 10

    @property
    def has_vectors(self) -> bool:
        """Tell whether the quantity takes several vectors per sample."""
        return "ggn" in self.quantity

    @property
    def key(self) -> dict[str, Any]:
        """Columns that tell it from others."""
        return {
            "quantity": self.quantity,
            "network": self.layer.network,
            "layer": self.layer.name,
            "batch_size": self.batch_size,
            "num_vectors": self.num_vectors if self.has_vectors else 0,
        }

    def tensors(self, device: torch.device) -> dict[str, Tensor]:
        """Make normally distributed arguments, in the order of the function's."""
        conv = self.layer.conv
        inputs = self.layer.input_shape(self.batch_size)
        outputs = self.layer.output_shape(self.batch_size)
        inner = conv.in_channels // conv.groups * prod(conv.kernel_size)
        outer = conv.out_channels // conv.groups
        positions = prod(conv.output_size)
        shapes: dict[str, tuple[int, ...]] = {
            "x": inputs,
            "x_dot": inputs,
            "weight": conv.weight_shape,
            "weight_dot": conv.weight_shape,
            "g": outputs,
            "h": outputs,
            "vectors": conv.weight_shape,
            "S": (self.num_vectors, *outputs),
            "u": (self.batch_size, conv.groups * inner, positions),
            "QA": (conv.groups, inner, inner),
            "QB": (conv.groups, outer, outer),
        }
        function = getattr(functional, self.quantity)
        parameters = inspect.signature(function).parameters.values()
        names = [each.name for each in parameters if each.default is each.empty]
        return {
            name: normal(shapes[name], device, seed)
            for seed, name in enumerate(names)
            if name != "conv"
        }

    def call(self, tensors: dict[str, Tensor]) -> Call:
        """Return what calls the function on its arguments."""
        function, values = getattr(functional, self.quantity), tuple(tensors.values())
        return lambda: function(*values, self.layer.conv)

    def plan(self, device: torch.device) -> Plan:
        """Plan what the function evaluates."""
        x = torch.empty(self.layer.input_shape(self.batch_size), device=device)
        # patches are summed by a network, and divided afterwards
        name: Any = {"patch_mean": "patch_sum"}.get(self.quantity, self.quantity)
        arguments = {"num_vectors": self.num_vectors} if self.has_vectors else {}
        return functional.plan(name, x, self.layer.conv, **arguments)
