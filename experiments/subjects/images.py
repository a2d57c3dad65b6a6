"""Labelled images that need no download: digits, and Fashion-MNIST where it is."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist has its files."""
DIGITS_PIXELS = 32
NUM_TRAIN = 12000
"""Images of Fashion-MNIST: so many that tuned SGD still learns when time is up."""
_NUM_TEST_DIGITS = 360
_FASHION_MEAN, _FASHION_DEVIATION = 0.286, 0.353
_BYTES = 8
"""The IDX format's code of unsigned bytes."""


class Split(NamedTuple):
    """Images and their labels.

    Args:
        images: Shape ``[N, 1, I, I]``.
        labels: Shape ``[N]``.
    """

    images: Tensor
    labels: Tensor

    def first(self, number: int) -> Split:
        """Only the first ones."""
        return Split(self.images[:number], self.labels[:number])


class Images(NamedTuple):
    """Data to train and to test with.

    Args:
        name: What they are.
        train: For training.
        test: For testing.
    """

    name: str
    train: Split
    test: Split

    @property
    def pixels(self) -> int:
        """Side of the images."""
        return self.train.images.shape[-1]


def digits() -> Images:
    """scikit-learn's bundled digits, enlarged from 8 to 32 pixels a side."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    images = interpolate(images, size=(DIGITS_PIXELS,) * 2, mode="bilinear")
    labels = torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order.split([_NUM_TEST_DIGITS, len(labels) - _NUM_TEST_DIGITS])
    return Images(
        "digits",
        Split(images[train], labels[train]),
        Split(images[test], labels[test]),
    )


def fashion_mnist(folders: Sequence[Path]) -> Images | None:
    """Fashion-MNIST, standardised, if one of the folders has it.

    Args:
        folders: That of the IDX files, packed or not, or the ``root`` of torchvision's
            ``FashionMNIST``. The first that has the data is read.

    Returns:
        The images; ``None`` if no folder has them.
    """
    for folder in _with_inner(folders):
        files = {
            name: path
            for name in ("train-images-idx3", "train-labels-idx1")
            + ("t10k-images-idx3", "t10k-labels-idx1")
            for path in _candidates(folder, name)
        }
        if len(files) == 4:
            read = {name: _read_idx(path) for name, path in files.items()}
            splits = []
            for kind in ("train", "t10k"):
                images = read[f"{kind}-images-idx3"][:, None].float() / 255
                images = (images - _FASHION_MEAN) / _FASHION_DEVIATION
                splits.append(Split(images, read[f"{kind}-labels-idx1"].long()))
            return Images("fashion-mnist", *splits)
    return None


def find_images(name: str) -> Images:
    """Get digits or Fashion-MNIST by name; of the latter, few to train.

    Raises:
        FileNotFoundError: If the data are not there.
    """
    if name == "digits":
        return digits()
    found = fashion_mnist([DEBIAN_FASHION])
    if found is None:
        remedy = "Debian's package dataset-fashion-mnist has it"
        raise FileNotFoundError(f"no Fashion-MNIST in {DEBIAN_FASHION}; {remedy}")
    return found._replace(train=found.train.first(NUM_TRAIN))


def _with_inner(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        yield folder
        yield folder / "FashionMNIST" / "raw"


def _candidates(folder: Path, name: str) -> list[Path]:
    paths = (folder / f"{name}-ubyte{ending}" for ending in ("", ".gz"))
    return [path for path in paths if path.is_file()][:1]


def _read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes.

    Raises:
        ValueError: If it is none.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    kind, num_axes = content[2:4].ljust(2, b"\0")
    start = 4 + 4 * num_axes
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    size = int(torch.tensor(shape, dtype=torch.int64).prod())
    if content[:2] != b"\0\0" or kind != _BYTES or len(content) != start + size:
        raise ValueError(f"{path} is no IDX file of bytes.")
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start)
    return values.reshape(shape)
