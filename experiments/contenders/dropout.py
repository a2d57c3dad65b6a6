"""Layers and networks with tensor dropout, and what their gradients lose by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from experiments.harness.case import Row
from experiments.subjects.images import Split
from tn_extensions import Conv, functional, quantities
from tn_extensions.dropout import convert
from tn_extensions.sampling import Sampler, sample

Axes = tuple[str, ...]
"""Indices that are sampled together, with equal shares."""

AXES: tuple[Axes, ...] = (
    ("n",),
    ("ci",),
    ("i1",),
    ("i2",),
    ("i1", "i2"),
    ("n", "ci"),
    ("n", "i1"),
    ("n", "ci", "i1", "i2"),
)


def named(axes: Axes) -> str:
    """Join axes to a name."""
    return " x ".join(axes)


def spread(axes: Axes, share: float) -> dict[str, float]:
    """Return equal shares of axes whose product is the share of all."""
    return dict.fromkeys(axes, share ** (1 / len(axes)))


class MaskedReLU(nn.Module):
    """ReLU that holds a byte for each entry.

    ``nn.ReLU`` holds its result, the next layer's input, whatever that layer holds.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Zero what is negative."""
        return torch.where(x > 0, x, 0.0)


def sampled_cnn(
    pixels: int,
    keep: Mapping[str, float],
    activation: type[nn.Module] = MaskedReLU,
    width: int = 8,
) -> nn.Sequential:
    """Make a CNN all of whose layers sample; it has no pooling, which holds its input.

    Args:
        pixels: Side of its images, of one channel each.
        keep: Shares to keep. If empty, layers are torch's own.
        activation: What follows each convolution.
        width: Channels of the first convolution; those of the last are four times this.
    """
    convolutions = {
        "stem": nn.Conv2d(1, width, 3, stride=2, padding=1),
        "early": nn.Conv2d(width, 2 * width, 3, padding=1),
        "middle": nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
        "late": nn.Conv2d(2 * width, 4 * width, 3, padding=1),
    }
    model = nn.Sequential()
    for name, module in convolutions.items():
        # torch's default is for other activations: some seeds would not start
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        model.add_module(name, module)
        model.add_module(f"{name}_activation", activation())
    model.add_module("flatten", nn.Flatten())
    model.add_module("linear", nn.Linear(4 * width * (-(-pixels // 4)) ** 2, 10))
    if not keep:
        return model
    # of its own, lest draws depend on what else draws; from the seed of the weights
    generator = torch.Generator().manual_seed(torch.initial_seed())
    return convert(model, keep, sampler="fixed", generator=generator)


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Count the bytes saved for the backward pass, but for parameters.

    Tensors that share memory count once.
    """
    own = {parameter.data_ptr() for parameter in module.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # held, lest memory be reused and two storages have one address
        output = module(x)
    del output
    return sum(saved.values())


# -- errors of sampled gradients


class Operands(NamedTuple):
    """The operands of a layer's weight gradient: its input, its output's gradient."""

    conv: Conv
    x: Tensor
    g: Tensor


def operands_of(model: nn.Module, name: str, batch: Split) -> Operands:
    """Run a batch forwards and backwards, and see what a convolution sees."""
    seen: list[Tensor] = []
    layer = model.get_submodule(name)
    hook = layer.register_forward_hook(lambda _, xs, y: seen.extend([xs[0], y]))
    loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
    hook.remove()
    x, y = seen
    (g,) = torch.autograd.grad(loss, y)
    return Operands(Conv.from_module(layer, tuple(x.shape[2:])), x.detach(), g)


def distance(estimate: Tensor, exact: Tensor) -> float:
    """Compute the relative error in the Frobenius norm."""
    return float((estimate - exact).norm() / exact.norm())


def sampling_errors(
    operands: Operands, shares: Sequence[float], samplers: Sequence[Sampler], draws: int
) -> Iterator[Row]:
    """Measure the mean error of several draws, and the share that they really keep.

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


def batch_error(model: nn.Module, name: str, batch: Split, data: Split) -> float:
    """Measure how far the gradient of a batch is from that of all data."""
    weight = model.get_parameter(f"{name}.weight")

    def gradient(split: Split) -> Tensor:
        total = torch.zeros_like(weight)
        parts = (tensor.split(len(batch.labels)) for tensor in split)
        for images, labels in zip(*parts, strict=True):
            loss = nn.functional.cross_entropy(model(images), labels, reduction="sum")
            total += torch.autograd.grad(loss, weight)[0]
        return total / len(split.labels)

    # relative to the batch's gradient, as the errors of sampling are
    return distance(gradient(data), gradient(batch))
