"""Layers, and what their estimates are by definition."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tests.sampling.estimates import factors
from tn_extensions.dropout import Sampled
from tn_extensions.dropout.gradient import EstimatedGradient


class Spy:
    """Watches what is drawn."""

    def __init__(self) -> None:
        self.sampled: list[Sampled] = []
        apply = EstimatedGradient.apply

        def watched(*args: Any) -> Any:
            self.sampled.append(args[-1])
            return apply(*args)

        self._patch = mock.patch.object(EstimatedGradient, "apply", watched)

    def __enter__(self) -> Spy:
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.stop()


def gradients(module: Any, x: Tensor, seed: int = 0) -> list[Tensor]:
    """Output, then gradients of input and parameters, of a random loss."""
    x = x.detach().clone().requires_grad_()
    output = module(x)
    cotangent = torch.randn(
        output.shape,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    ).to(output)
    found = torch.autograd.grad(output, [x, *module.parameters()], cotangent)
    return [output.detach(), *found]


def defined_weight_gradient(
    module: nn.Module, x: Tensor, sampled: Sampled, seed: int = 0
) -> Tensor:
    """Compute the weight gradient of scaled slices, by autograd through torch.

    Masks input and output; the input's spatial masks act on what the layer pads.
    """
    layer: Any = module
    output = module(x)
    g = torch.randn(
        output.shape,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )
    sizes = sampled.original.sizes
    z = {j: factors(draw, sizes[j]) for j, draw in sampled.draws.items()}
    linear = isinstance(module, nn.Linear)
    if not linear:
        twice = layer._reversed_padding_repeated_twice
        if layer.padding_mode != "zeros":
            x = nn.functional.pad(x, twice, mode=layer.padding_mode)
    for index, factor in z.items():
        axis = _axis(index, x.dim(), linear)
        if index.startswith("o"):
            g = g * _along(factor, axis, g.dim())
        elif index in ("g", "ci"):
            groups, channels = sizes.get("g", 1), sizes["ci"]
            each = factor.repeat_interleave(channels) if index == "g" else factor
            each = each if index == "g" else factor.repeat(groups)
            x = x * _along(each, axis, x.dim())
        else:
            x = x * _along(factor, axis, x.dim())
    weight = layer.weight.detach().clone().requires_grad_()
    if linear:
        result = nn.functional.linear(x, weight)
    else:
        padded = layer.padding_mode != "zeros"
        convolve = {3: nn.functional.conv1d, 4: nn.functional.conv2d}.get(
            x.dim(), nn.functional.conv3d
        )
        padding = 0 if padded else layer.padding
        result = convolve(
            x, weight, None, layer.stride, padding, layer.dilation, layer.groups
        )
    (found,) = torch.autograd.grad(result, [weight], g)
    return found


def _axis(index: str, dims: int, linear: bool) -> int:
    if index == "n":
        return 0
    if index in ("g", "ci"):
        return dims - 1 if linear else 1
    return int(index[1:]) + (0 if linear else 1)


def _along(factor: Tensor, axis: int, dims: int) -> Tensor:
    return factor.reshape([-1 if each == axis else 1 for each in range(dims)])
