"""Trains a small CNN on handwritten digits, then compares KFAC with stock BackPACK.

``python -m experiments.demo``. Exits with 1 if a factor differs from stock's, or from a
reference where stock does not support the layer.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from experiments.comparison import compare, render
from experiments.measure import preload

CONVOLUTIONS: dict[str, partial[nn.Conv2d]] = {
    "dense": partial(nn.Conv2d, 1, 16, 3, padding=1),
    "strided": partial(nn.Conv2d, 16, 32, 3, stride=2, padding=1),
    "grouped": partial(nn.Conv2d, 32, 32, 3, padding=1, groups=4),
    "dilated": partial(nn.Conv2d, 32, 64, 3, padding=2, dilation=2),
}
PIXELS = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, compare, print.

    Args:
        arguments: The command line. Default: the process's.

    Returns:
        0 if all factors agree, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.demo", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    preload("experiments.contenders")
    train, test = load_data()
    model = build_model()
    print(
        f"Training a CNN of {len(CONVOLUTIONS)} convolutions on {len(train[1])} digits"
    )
    train_model(model, *train, epochs=args.epochs, batch_size=args.batch_size)
    print(f"Test accuracy: {accuracy(model, *test):.1%}\n")

    inputs, targets = (tensor[: args.batch_size] for tensor in train)
    comparisons = compare(model, inputs, targets, rounds=args.rounds)
    print(
        f"KFAC on a batch of {len(inputs)}, stock BackPACK and ours, one Monte-Carlo "
        f"sample with the same seed, {torch.get_num_threads()} threads.\n"
        "Difference: largest over a layer's factors, relative to the largest entry. "
        "Time, memory: the input\nfactor in float32, stock's over ours.\n"
    )
    print(render(comparisons))
    wrong = [c.layer for c in comparisons if not c.agrees]
    if wrong:
        print(f"\nDiffers by more than rounding: {', '.join(wrong)}")
    return 1 if wrong else 0


def load_data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scikit-learn's bundled digits, enlarged from 8 to 32 pixels a side.

    Returns:
        Images ``[N, 1, 32, 32]`` and labels ``[N]`` for training, and for testing.
    """
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = interpolate(images, size=(PIXELS, PIXELS), mode="bilinear")
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order.split([360, len(labels) - 360])
    return (images[train], labels[train]), (images[test], labels[test])


def build_model() -> nn.Sequential:
    """A CNN with a dense, a strided, a grouped and a dilated convolution."""
    model = nn.Sequential()
    for name, make_module in CONVOLUTIONS.items():
        model.add_module(name, make_module())
        model.add_module(f"{name}_relu", nn.ReLU())
    model.add_module("pool", nn.MaxPool2d(4))
    model.add_module("flatten", nn.Flatten())
    model.add_module("linear", nn.Linear(1024, 10))
    return model


def train_model(
    model: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch_size: int
) -> None:
    """Train with Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loss_function = nn.CrossEntropyLoss()
    batches_per_epoch = math.ceil(len(labels) / batch_size)
    with tqdm(total=epochs * batches_per_epoch, unit="batch") as progress:
        for epoch in range(epochs):
            for batch in torch.randperm(len(labels)).split(batch_size):
                optimizer.zero_grad()
                loss = loss_function(model(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                progress.update()
                progress.set_postfix(
                    epoch=epoch + 1, loss=f"{loss.item():.3f}", refresh=False
                )


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images that the model labels correctly."""
    return float((model(images).argmax(1) == labels).double().mean())


if __name__ == "__main__":
    sys.exit(main())
