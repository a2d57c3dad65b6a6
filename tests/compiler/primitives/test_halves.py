"""Primitives of mirrored networks, whose halves are of two operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.compiler.candidates import (
    LARGE,
    OTHERS,
    TINY,
    assert_all_evaluate,
    layer,
    target,
)
from tests.strategies import BATCHES, convs, examples, noise_tensor
from tn_extensions import Conv, TensorNetwork, quantities
from tn_extensions.compiler import product
from tn_extensions.compiler.accumulator import Accumulator
from tn_extensions.compiler.candidate import Primitive
from tn_extensions.compiler.primitives.crossed import crossed
from tn_extensions.compiler.primitives.gram import gram
from tn_extensions.compiler.primitives.khatri_rao import khatri_rao
from tn_extensions.compiler.primitives.patch_gram import patch_gram

Define = Callable[[Conv, int], TensorNetwork]

NETWORKS: dict[str, Define] = {
    "norm": quantities.per_sample_grad_norm,
    "norms": lambda conv, n: quantities.per_sample_grad_norm(conv, n, 2),
    "diagonal": lambda conv, n: quantities.ggn_diagonal(conv, n, 3),
    "diagonals": lambda conv, n: quantities.ggn_diagonal(conv, n, 3, True),
    "diagonal of one": lambda conv, n: quantities.ggn_diagonal(conv, n, 1),
    "gram": lambda conv, n: quantities.ggn_gram(conv, n, 2),
    "gram of one": lambda conv, n: quantities.ggn_gram(conv, n, 1),
}
MATCHED: dict[Primitive, set[str]] = {
    gram: {*NETWORKS},
    crossed: {*NETWORKS},
    khatri_rao: {"diagonal", "diagonals"},
    patch_gram: {"gram", "gram of one"},
}


@pytest.mark.parametrize("primitive", MATCHED, ids=lambda one: one.__name__)
@examples(20)
@given(
    convs(max_dims=2),
    BATCHES,
    st.sampled_from([LARGE, TINY]),
    st.sampled_from(sorted(NETWORKS)),
)
def test_values(
    primitive: Primitive, conv: Conv, batch_size: int, budget: int, name: str
) -> None:
    network = NETWORKS[name](conv, batch_size)
    assert_all_evaluate(primitive, network, budget)


@pytest.mark.parametrize("primitive", MATCHED, ids=lambda one: one.__name__)
def test_matches_by_structure(primitive: Primitive) -> None:
    # few positions, so that Gram matrices over them are small
    conv = Conv.make(6, 8, 3, (5, 4), groups=2, padding=1)
    found = {
        name
        for name, define in NETWORKS.items()
        if assert_all_evaluate(primitive, define(conv, 3))
    }
    assert found == MATCHED[primitive]
    for name, network in OTHERS.items():
        # halves of one operand have a Gram matrix, too
        single = primitive is gram and name in ("kfac_expand", "kfac_reduce")
        assert single == bool(list(primitive(network, target())))


@pytest.mark.parametrize("primitive", MATCHED, ids=lambda one: one.__name__)
@pytest.mark.parametrize("transposed", [False, True])
def test_many_channels(primitive: Primitive, transposed: bool) -> None:
    conv = Conv.make(
        40, 24, (3, 2), (4, 5), stride=(1, 2), padding=1, transposed=transposed
    )
    for name in MATCHED[primitive]:
        for budget in (LARGE, 2**14):
            network = NETWORKS[name](conv, 3)
            assert assert_all_evaluate(primitive, network, budget) >= 1


def test_many_positions_are_not_crossed() -> None:
    network = quantities.per_sample_grad_norm(layer(input_size=(40, 40)), 2)
    assert not list(crossed(network, target()))


def test_crossed_in_chunks_that_fit() -> None:
    conv = Conv.make(16, 16, 3, (8, 8), padding=1)
    network = quantities.per_sample_grad_norm(conv, 12)
    (whole,) = crossed(network, target())
    (way,) = crossed(network, target(2**18))
    assert way.cost.peak < whole.cost.peak / 3


def test_khatri_rao_is_never_negative() -> None:
    """Vectors orthogonal to the patches leave nothing but rounding, of either sign."""
    conv = Conv.make(8, 6, 1, 40)
    x, S = noise_tensor((2, 8, 40)), noise_tensor((30, 2, 6, 40))
    for n, patches in enumerate(x):
        S[:, n] -= S[:, n] @ torch.linalg.pinv(patches) @ patches
    tensors = {"x": x.float(), "g": S.float()}
    network = quantities.ggn_diagonal(conv, 2, 30)
    ways = list(khatri_rao(network, target(itemsize=4)))
    assert ways
    for way in ways:
        result = torch.empty(network.shape)
        way.run(tensors, Accumulator(result, 1.0, fresh=True))
        assert (result >= 0).all() and (result == 0).any() and result.max() < 1e-2


VIEWS = ("aten::_reshape_alias", "aten::_unsafe_view", "aten::detach", "aten::alias")


class Calls(TorchDispatchMode):
    """Counts the operators that are called, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.number += not (func.is_view or func._schema.name in VIEWS)
        return func(*args, **(kwargs or {}))


LAYERS = {
    "large": ((16, 16, 3, (8, 8)), {"padding": 1}),
    "small": ((32, 32, 3, (5, 5)), {"padding": 1}),
    "depthwise": ((8, 8, 3, (12, 12)), {"padding": 1, "groups": 8}),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ["norm", "diagonal", "gram"])
def test_few_large_operators(
    name: str, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "_prefers_onednn", lambda: False)  # tried only once
    sizes, options = LAYERS[layer]
    conv = Conv.make(*sizes, **options)  # type: ignore[arg-type]
    arguments = () if name == "norm" else (10,)
    quantity = {"norm": "per_sample_grad_norm"}.get(name, f"ggn_{name}")
    network = getattr(quantities, quantity)(conv, 8, *arguments)
    tensors = {o.name: torch.ones(o.shape) for o in network.operands}
    for primitive in MATCHED:
        for candidate in primitive(network, target(itemsize=4)):
            out = torch.empty(network.shape)
            with Calls() as calls:
                candidate.run(tensors, Accumulator(out, 1.0, fresh=True))
            assert calls.number <= 50, candidate.label
