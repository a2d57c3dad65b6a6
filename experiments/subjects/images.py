"""Labelled images that need no download: digits, and Fashion-MNIST where it is."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist has its files."""
NUM_TRAIN = 12000
"""Images of Fashion-MNIST: so many that tuned SGD still learns when time is up."""
_NUM_TEST_DIGITS = 360
_FASHION_MEAN, _FASHION_DEVIATION = 0.286, 0.353


class Split(NamedTuple):
    """Images ``[N, 1, I, I]`` and their labels ``[N]``."""

    images: Tensor
    labels: Tensor

    def first(self, number: int) -> Split:
        """Keep only the first ones."""
        return Split(self.images[:number], self.labels[:number])


class Images(NamedTuple):
    """Data to train and to test with."""

    name: str
    train: Split
    test: Split

    @property
    def pixels(self) -> int:
        """Side of the images."""
        return self.train.images.shape[-1]


def find_images(name: str) -> Images:
    """Get digits or Fashion-MNIST by name."""
    return digits() if name == "digits" else fashion_mnist()


def digits() -> Images:
    """Load scikit-learn's digits, enlarged from 8 to 32 pixels a side."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    images = interpolate(images, size=(32, 32), mode="bilinear")
    labels = torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order.split([_NUM_TEST_DIGITS, len(labels) - _NUM_TEST_DIGITS])
    return Images(
        "digits",
        Split(images[train], labels[train]),
        Split(images[test], labels[test]),
    )


def fashion_mnist() -> Images:
    """Fashion-MNIST, standardised; few images to train.

    Raises:
        FileNotFoundError: If the data are not there.
    """
    if not DEBIAN_FASHION.is_dir():
        remedy = "Debian's package dataset-fashion-mnist has it"
        raise FileNotFoundError(f"no Fashion-MNIST in {DEBIAN_FASHION}; {remedy}")
    splits = []
    for kind in ("train", "t10k"):
        # behind four bytes, and four for each axis
        images = _read(f"{kind}-images-idx3-ubyte", 16).view(-1, 1, 28, 28)
        standardised = (images.float() / 255 - _FASHION_MEAN) / _FASHION_DEVIATION
        labels = _read(f"{kind}-labels-idx1-ubyte", 8)
        splits.append(Split(standardised, labels.long()))
    train, test = splits
    return Images("fashion-mnist", train.first(NUM_TRAIN), test)


def _read(name: str, start: int) -> Tensor:
    """Read the bytes of a file, packed or not."""
    path = DEBIAN_FASHION / name
    packed = path.with_name(f"{name}.gz")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else None
    content = path.read_bytes() if content is None else content
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start)
