"""Images are read as they were written."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.subjects import images
from experiments.subjects.images import digits, find_images


def write_idx(path: Path, values: Tensor) -> None:
    head = bytes([0, 0, 8, values.dim()])
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = head + sizes + bytes(values.flatten().tolist())
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder: Path, ending: str) -> dict[str, Tensor]:
    """Seven images to train, three to test."""
    written = {}
    for kind, number in (("train", 7), ("t10k", 3)):
        written[kind] = torch.randint(256, (number, 28, 28))
        labels = torch.arange(number)
        write_idx(folder / f"{kind}-images-idx3-ubyte{ending}", written[kind])
        write_idx(folder / f"{kind}-labels-idx1-ubyte{ending}", labels)
    return written


def test_digits_fit() -> None:
    (shown, labels), (test_images, test_labels) = digits().train, digits().test
    assert (len(shown), len(test_images)) == (1437, 360)
    assert shown.shape[1:] == (1, 32, 32)
    assert float(shown.min()) >= 0
    assert float(shown.max()) <= 1
    assert set(labels.tolist()) == set(test_labels.tolist()) == set(range(10))


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_fashion_mnist_is_read(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "DEBIAN_FASHION", tmp_path)
    monkeypatch.setattr(images, "NUM_TRAIN", 6)
    written = write_fashion(tmp_path, ending)
    data = find_images("fashion-mnist")
    assert data.pixels == 28
    for kind, split, number in (("train", data.train, 6), ("t10k", data.test, 3)):
        assert split.labels.tolist() == list(range(number))
        assert split.images.shape == (number, 1, 28, 28)
        bytes_again = (split.images[:, 0] * 0.353 + 0.286) * 255
        torch.testing.assert_close(bytes_again, written[kind][:number].float())
