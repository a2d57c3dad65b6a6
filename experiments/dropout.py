"""Is a backward pass with tensor dropout faster, and what does it save?

``python -m experiments.dropout --help`` lists the options. Prints a Markdown table: the
time of torch's backward pass through a layer over that of the converted layer, and the
share of the input's bytes that is saved. Each gradient is checked first. Freed memory
is kept, lest page faults hit either side by chance.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from experiments.measure import (
    MIN_ROUNDS,
    keep_freed_memory,
    medians,
    time_side_by_side,
)
from tn_extensions.dropout import convert
from tn_extensions.sampling import SAMPLERS, Sampler

LAYERS: dict[str, tuple[nn.Conv2d, int]] = {
    "64x56 k3": (nn.Conv2d(64, 64, 3, padding=1), 56),
    "128x28 k3": (nn.Conv2d(128, 128, 3, padding=1), 28),
    "64x28 k3": (nn.Conv2d(64, 64, 3, padding=1), 28),
    "96x32 k3": (nn.Conv2d(96, 96, 3, padding=1), 32),
    "64x56 k3 s2": (nn.Conv2d(64, 128, 3, stride=2, padding=1), 56),
    "3x224 k7 s2": (nn.Conv2d(3, 64, 7, stride=2, padding=3), 224),
    "256x28 k1": (nn.Conv2d(256, 256, 1), 28),
    "depthwise 96x56 k3": (nn.Conv2d(96, 96, 3, padding=1, groups=96), 56),
}
"""Layers, and pixels per side of their input."""
TOLERANCE = 1e-4
"""Of gradients that are exact, relative to the largest entry."""
KEEPS: tuple[dict[str, float], ...] = (
    {"n": 0.5, "ci": 0.5},
    {"n": 0.5, "i1": 0.5},
    {"ci": 0.5, "i1": 0.5},
    {"n": 0.5, "i2": 0.5},
    {"i1": 0.5, "i2": 0.5},
    {"n": 0.5, "o1": 0.5},
)


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes saved for the backward pass, but for parameters; storages count once."""
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


def saved_share(layer: nn.Module, x: Tensor) -> float:
    """Bytes saved for the backward pass, but for parameters, by those of the input."""
    return saved_bytes(layer, x) / x.nbytes


def compare(
    layer: nn.Conv2d,
    shape: Sequence[int],
    keep: Mapping[str, float],
    sampler: Sampler,
    rounds: int,
) -> tuple[float, float]:
    """Time of torch's backward pass over ours; share of the input that is saved.

    Args:
        layer: The layer.
        shape: Shape of its input.
        keep: Share of values to keep, by index.
        sampler: How to draw.
        rounds: Number of rounds of the timing.
    """
    if layer.groups == layer.in_channels > 1:  # its channels are groups
        keep = {"g" if index == "ci" else index: keep[index] for index in keep}
    x = torch.randn(*shape, requires_grad=True)
    layers = {"torch": layer, "ours": convert(deepcopy(layer), keep, sampler=sampler)}
    outputs: dict[str, Tensor] = {}
    g = torch.randn_like(layer(x))

    def forward(name: str) -> None:
        outputs[name] = layers[name](x)

    def backward(name: str) -> tuple[Tensor, ...]:
        wanted = [x, *layers[name].parameters()]
        return torch.autograd.grad(outputs[name], wanted, g)

    for name in layers:
        forward(name)
    for index, (ours, exact) in enumerate(
        zip(backward("ours"), backward("torch"), strict=True)
    ):
        if index != 1:  # the weight's gradient is an estimate
            error = (ours - exact).abs().max() / exact.abs().max()
            if not error <= TOLERANCE:  # nan is wrong, too
                raise RuntimeError(f"gradient {index} is wrong by {error:.1e}")
    times = time_side_by_side(
        {name: lambda name=name: backward(name) for name in layers},  # type: ignore[misc]
        rounds,
        setup={name: lambda name=name: forward(name) for name in layers},  # type: ignore[misc]
    )
    middle = medians(times)
    return middle["torch"] / middle["ours"], saved_share(layers["ours"], x)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one layer, few rounds")
    parser.add_argument("--sampler", choices=SAMPLERS, default="fixed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=8, help="default: 8")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    layers = dict(list(LAYERS.items())[2:3]) if options.quick else LAYERS
    titles = [" ".join(f"{j} {share}" for j, share in keep.items()) for keep in KEEPS]
    print(f"| layer, batch {options.batch} | {' | '.join(titles)} |")
    print("|-" * (len(KEEPS) + 1) + "|")
    for name, (layer, pixels) in layers.items():
        cells = []
        for keep in KEEPS:
            rounds = MIN_ROUNDS if options.quick else 15
            shape = (options.batch, layer.in_channels, pixels, pixels)
            ratio, share = compare(layer, shape, keep, options.sampler, rounds)
            cells.append(f"{ratio:.2f} ({share:.3f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
