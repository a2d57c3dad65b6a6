"""Candidates on a CUDA device that is not there: no work and no waiting on the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fake_cuda import FakeCuda
from tn_extensions import Conv, planning, quantities
from tn_extensions.compiler import plan
from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.network import TensorNetwork

LAYERS = {
    "ordinary": Conv.make(2, 3, 3, (4, 4), padding=1),
    "strided, dilated": Conv.make(2, 4, 3, (9,), 2, 3, 2, groups=2),
    "three dimensions": Conv.make(2, 2, (1, 2, 2), (2, 3, 2)),
    "depthwise": Conv.make(2, 2, 3, (5,), padding=1, groups=2),
    "transposed": Conv.make(2, 3, 3, (3,), 2, transposed=True),
    "one entry": Conv.make(4, 3, 1, (4, 4)),
}
QUANTITIES = {
    "conv": (2,),
    "weight_vjp": (2,),
    "input_vjp": (2,),
    "unfold_input": (2,),
    "unfold_weight": (),
    "patch_total": (2,),
    "kfac_expand": (2,),
    "kfac_reduce": (2,),
    "per_sample_grad": (2,),
    "per_sample_grad_norm": (2,),
    "ggn_diagonal": (2, 2),
    "ggn_gram": (2, 2),
    "ggn_matvec": (2, 2, 2),
    "diagonal_backward": (2,),
}
"""With the sizes of a batch, and numbers of vectors."""


MANY = ("kfac_expand", "ggn_diagonal", "per_sample_grad_norm", "input_vjp")
"""Quantities of many candidates."""


def cases() -> Iterator[tuple[str, str]]:
    """Quantities and layers: not all of each other, which takes long."""
    for number, layer in enumerate(LAYERS):
        for name in QUANTITIES if number < 2 else MANY:
            yield name, layer


@pytest.mark.parametrize(("name", "layer"), cases())
def test_all_candidates(name: str, layer: str, cuda: FakeCuda) -> None:
    define = getattr(quantities, name)
    network: TensorNetwork = define(LAYERS[layer], *QUANTITIES[name])
    tensors = {node.name: cuda.tensor(*node.shape) for node in network.operands}
    made = plan(network, torch.float32, "cuda")
    for candidate in (made.candidate, *made.rejected):
        into = Accumulator(cuda.tensor(*network.shape), 0.5, fresh=False)
        cuda.run(candidate.run, tensors, into)
        if candidate.compute is not None:
            assert cuda.run(candidate.compute, tensors).shape == network.shape


def test_nothing_is_measured(cuda: FakeCuda, cache: Path) -> None:
    """Tensors without data take no time."""
    network = quantities.kfac_expand(LAYERS["ordinary"], 2)
    with planning("measure"):
        made = plan(network, torch.float32, "cuda")
        made.run({"x": cuda.tensor(2, 2, 4, 4)})
    assert not made.measured and not [*cache.iterdir()]
