"""Images are read as they were written, or refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.subjects.images import digits, fashion_mnist


def write_idx(path: Path, values: Tensor) -> None:
    head = bytes([0, 0, 8, values.dim()])
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = head + sizes + bytes(values.flatten().tolist())
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder: Path, ending: str) -> dict[str, Tensor]:
    """Seven images to train, three to test."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for kind, number in (("train", 7), ("t10k", 3)):
        images = torch.randint(256, (number, 28, 28))
        labels = torch.arange(number)
        write_idx(folder / f"{kind}-images-idx3-ubyte{ending}", images)
        write_idx(folder / f"{kind}-labels-idx1-ubyte{ending}", labels)
        written[kind] = images
    return written


def test_digits_fit() -> None:
    (images, labels), (test_images, test_labels) = digits().train, digits().test
    assert (len(images), len(test_images)) == (1437, 360)
    assert images.shape[1:] == (1, 32, 32)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert set(labels.tolist()) == set(test_labels.tolist()) == set(range(10))


@pytest.mark.parametrize("inner", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_fashion_mnist_is_read(tmp_path: Path, inner: str, ending: str) -> None:
    written = write_fashion(tmp_path / inner, ending)
    data = fashion_mnist([tmp_path / "elsewhere", tmp_path])
    assert data is not None and data.pixels == 28
    for kind, split in (("train", data.train), ("t10k", data.test)):
        assert split.labels.tolist() == list(range(len(written[kind])))
        assert split.images.shape == (len(written[kind]), 1, 28, 28)
        bytes_again = (split.images[:, 0] * 0.353 + 0.286) * 255
        torch.testing.assert_close(bytes_again, written[kind].float())


def test_folders_without_all_files_are_passed_over(tmp_path: Path) -> None:
    assert fashion_mnist([tmp_path]) is None
    write_fashion(tmp_path, ".gz")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    assert fashion_mnist([tmp_path]) is None


@pytest.mark.parametrize("cut", [0, 3, 8, -1])
def test_damaged_files_are_refused(tmp_path: Path, cut: int) -> None:
    write_fashion(tmp_path, "")
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is no IDX file"):
        fashion_mnist([tmp_path])
