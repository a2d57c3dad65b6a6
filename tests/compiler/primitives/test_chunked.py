"""Chunked: a network evaluated a chunk at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from tests.compiler.lowerings import layer, target
from tests.reference import dense
from tests.strategies import noise
from tn_extensions import quantities
from tn_extensions.compiler.chunks import Chunks
from tn_extensions.compiler.plan import _cheapest
from tn_extensions.compiler.primitives.chunked import Chunked


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_chunks_make_up_the_whole(size: int) -> None:
    network = quantities.unfold_input(layer(), 5)
    chunks = Chunks.along(network.operands, network.sizes, ["n"])
    chunked = Chunked.of(network, chunks, size, target(), _cheapest)
    assert chunked.number == -(-5 // size)
    assert set(chunked.lowerings) == {size, 5 % size} - {0}
    assert chunked.steps[0] == (
        "at once:" if size == 5 else f"in {chunked.number} chunk(s) of {size} n:"
    )
    assert len(chunked.steps) == 1 + len(chunked.one.steps)
    x = noise((5, 2, 6, 6))
    parts = [part.numpy() for part in chunked.values({"x": torch.from_numpy(x)})]
    assert len(parts) == chunked.number
    found = np.concatenate([part.reshape(-1, *network.shape[1:]) for part in parts])
    assert_allclose(found, dense.evaluate(network, {"x": x}), atol=1e-10)
