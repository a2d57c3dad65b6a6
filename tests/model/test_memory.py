"""Memory that functions hold: little, and none once they have returned."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.networks import Frames, Shared, model_and_data
from tests.strategies import noise_tensor
from tn_extensions import memory_budget
from tn_extensions.layers import squares
from tn_extensions.model import ggn_diagonal, kfac_factors, per_sample_grad_norms


class Held:
    """A tensor that autograd holds."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def norms(model: nn.Module, loss: Any, data: Any) -> Any:
    return per_sample_grad_norms(model, loss, *data)


@pytest.mark.parametrize("function", [norms, ggn_diagonal, kfac_factors])
@pytest.mark.parametrize("fails", [False, True])
def test_graphs_are_freed(function: Any, fails: bool) -> None:
    """Nodes hold hooks, and these the uses: after errors, too."""
    model, x, y = model_and_data(Shared)
    if fails:
        model, x, y = model_and_data(lambda: Frames("neither"))
    held = []

    def pack(tensor: Tensor) -> Held:
        # the tensor itself would hold its node
        one = Held(tensor.detach())
        held.append(weakref.ref(one))
        return one

    options = {"approx": "reduce"} if function is kfac_factors else {}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        try:
            function(model, nn.CrossEntropyLoss(), (x, y), **options)
        except ValueError:
            assert fails
    gc.collect()
    assert held and all(one() is None for one in held)


def test_several_uses_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole per-sample gradients are there for as many data as the budget has room."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.conv(self.conv(x).tanh()).sum(2))

    model, x, y = Twice().double(), noise_tensor((12, 8, 5)), torch.arange(12) % 8
    sizes = []
    stock = squares.per_sample_gradients

    def counted(pairs: Any, key: str) -> Tensor:
        sizes.append(len(pairs[0][1]))
        return stock(pairs, key)

    monkeypatch.setattr(squares, "per_sample_gradients", counted)
    loss = nn.CrossEntropyLoss()
    with memory_budget(5 * 2 * 8 * model.conv.weight.numel()):
        found = per_sample_grad_norms(model, loss, x, y, params=["conv.weight"])
        assert sizes == [5, 5, 2]
        diagonal = ggn_diagonal(model, loss, (x, y), params=["conv.weight"])
        assert max(sizes) == 5
    whole = per_sample_grad_norms(model, loss, x, y, params=["conv.weight"])
    torch.testing.assert_close(found, whole)
    expected = ggn_diagonal(model, loss, (x, y), params=["conv.weight"])
    torch.testing.assert_close(diagonal, expected)
