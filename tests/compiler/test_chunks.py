"""Chunks: parts of a network on parts of its operand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from tests.reference import dense
from tests.strategies import noise
from tn_extensions import Conv, quantities
from tn_extensions.compiler.chunks import Chunks
from tn_extensions.compiler.half import Half
from tn_extensions.network import Affine, Axis, Operand, simplify


@pytest.mark.parametrize("size", [1, 2, 4, 6])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kept", [False, True])
def test_chunks_make_up_the_whole(size: int, channels: int, kept: bool) -> None:
    conv = Conv.make(6 * channels, 6, 3, (5, 4), padding=1, groups=6)
    x = noise((6, 6 * channels, 5, 4))
    network = simplify(quantities.kfac_expand(conv, 6))
    half = Half.of(network)
    assert half is not None
    chunks = Chunks.along(half.nodes, half.sizes, half.batch if kept else half.rows)
    assert chunks.index == ("g" if kept else "n") and chunks.total == 6
    assert chunks.cuts == {"x": (1, channels) if kept else (0, 1)}

    values = [
        dense.evaluate(chunks.network(network, count), {"x": part["x"].numpy()})
        for count, part in chunks.split({"x": torch.from_numpy(x)}, size)
    ]
    found = np.concatenate(values) if kept else sum(values)
    assert_allclose(found, dense.evaluate(network, {"x": x}), atol=1e-10)


def test_one_chunk_where_nothing_can_be_cut() -> None:
    half = Half.of(quantities.kfac_expand(Conv.make(4, 4, 3, 5, groups=2), 5))
    assert half is not None
    # channels are fast within their axis, groups are slow
    chunks = Chunks.along([half.operand], half.sizes, ("ci",))
    assert not chunks.cuts and chunks.total == 1
    network = quantities.unfold_input(Conv.make(4, 4, 3, 5), 5)
    assert chunks.network(network, 1) == network
    x = torch.ones(1)
    assert [(n, part["x"] is x) for n, part in chunks.split({"x": x}, 1)] == [(1, True)]


@pytest.mark.parametrize(
    "position",
    [
        Affine((("a", 1),), 1),
        Affine((("a", 2),)),
        Affine((("a", 1), ("b", 1))),
        Affine(()),
    ],
)
def test_overlapping_and_partial_reads_are_no_chunks(position: Affine) -> None:
    operand = Operand("x", (Axis(position, 5),))
    assert not Chunks.along([operand], {"a": 2, "b": 3}, ("a", "b")).cuts


def test_all_carriers_are_cut() -> None:
    network = quantities.conv(Conv.make(2, 4, 3, 5), 3)
    chunks = Chunks.along(network.operands, network.sizes, ("o1", "n"))
    assert chunks.index == "n" and set(chunks.cuts) == {"x"}
    gradient = quantities.weight_vjp(Conv.make(2, 4, 3, 5), 3)
    chunks = Chunks.along(gradient.operands, gradient.sizes, ("n",))
    assert set(chunks.cuts) == {"x", "g"}
