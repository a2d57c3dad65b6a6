"""How far sampled weight gradients are from the exact ones, on real layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.images import Split
from tn_extensions import Conv, functional, quantities
from tn_extensions.sampling import Sampler, sample

AXES: tuple[tuple[str, ...], ...] = (
    ("n",),
    ("ci",),
    ("i1",),
    ("i2",),
    ("i1", "i2"),
    ("n", "ci"),
    ("n", "i1"),
    ("n", "ci", "i1", "i2"),
)
"""Indices that are sampled together."""


class Operands(NamedTuple):
    """What a weight's gradient is made of, at some step of a training.

    Args:
        conv: The layer's hyper-parameters.
        x: Its input.
        g: The gradient of its output.
    """

    conv: Conv
    x: Tensor
    g: Tensor


def named(axes: Sequence[str]) -> str:
    """Axes in one word or several."""
    return " x ".join(axes)


def spread(axes: Sequence[str], share: float) -> dict[str, float]:
    """Equal shares of axes whose product is the share of all."""
    return dict.fromkeys(axes, share ** (1 / len(axes)))


def operands_of(
    model: nn.Module, names: Sequence[str], batch: Split
) -> dict[str, Operands]:
    """Run a batch forwards and backwards; what convolutions see, by their names."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    layers = {name: model.get_submodule(name) for name in names}

    def note(name: str, x: Tensor, output: Tensor) -> None:
        inputs[name], outputs[name] = x.detach(), output

    hooks = [
        layer.register_forward_hook(
            lambda _, given, output, name=name: note(name, given[0], output)
        )
        for name, layer in layers.items()
    ]
    loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(loss, [outputs[name] for name in names])
    return {
        name: Operands(
            Conv.from_module(layers[name], inputs[name].shape[2:]), inputs[name], g
        )
        for name, g in zip(names, gradients, strict=True)
    }


def distance(estimate: Tensor, exact: Tensor) -> float:
    """Frobenius norm of the difference, over that of what is exact."""
    return float((estimate - exact).norm() / exact.norm())


def sampling_errors(
    operands: Operands,
    shares: Sequence[float],
    samplers: Sequence[Sampler],
    draws: int,
) -> Iterator[dict[str, Any]]:
    """Records of the mean error of several draws, and of the share they really keep.

    Both differ from what is asked for where axes are short: two of three channels are
    no half.
    """
    conv, x, g = operands
    exact = functional.weight_vjp(x, g, conv)
    network = quantities.weight_vjp(conv, len(x))
    for axes in AXES:
        for sampler in samplers:
            for share in shares:
                keep = spread(axes, share)
                errors, kept = [], []
                for _ in range(draws):
                    estimate = sample(network, keep, sampler=sampler, tensors={"x": x})
                    errors.append(distance(estimate.run({"x": x, "g": g}), exact))
                    kept.append(estimate.narrow("x", x).numel() / x.numel())
                yield {
                    "axes": named(axes),
                    "sampler": sampler,
                    "asked": share,
                    "share": mean(kept),
                    "error": mean(errors),
                }


def batch_errors(
    model: nn.Module, names: Sequence[str], batch: Split, all_data: Split
) -> Mapping[str, float]:
    """Errors of the batch's own gradients, as estimates of those of all data."""
    weights = [model.get_parameter(f"{name}.weight") for name in names]

    def gradients(split: Split) -> list[Tensor]:
        totals = [torch.zeros_like(weight) for weight in weights]
        size = len(batch.labels)
        for images, labels in zip(
            split.images.split(size), split.labels.split(size), strict=True
        ):
            loss = nn.functional.cross_entropy(model(images), labels, reduction="sum")
            parts = torch.autograd.grad(loss, weights)
            totals = [total + part for total, part in zip(totals, parts, strict=True)]
        return [total / len(split.labels) for total in totals]

    pairs = zip(gradients(batch), gradients(all_data), strict=True)
    return {
        # relative to the batch's gradient, as the errors of sampling are
        name: distance(whole, own)
        for name, (own, whole) in zip(names, pairs, strict=True)
    }
