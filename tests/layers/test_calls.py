"""Uses of parameters, as calls of torch's functions tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from tests.strategies import noise_tensor
from tn_extensions.layers.calls import calls_observed
from tn_extensions.layers.computed import leaves_of


def seen(model: nn.Module, x: Tensor, names: set[str], groups: str = "separate"):  # type: ignore[no-untyped-def]
    """Uses, gradients by name and number, and which parameters are in the graph."""
    own = {
        name: p.detach().requires_grad_()
        for name, p in model.named_parameters()
        if name in names
    }
    gradients: dict[tuple[str, int], Tensor] = {}

    def on_gradient(name: str, number: int, gradient: Tensor) -> None:
        gradients[name, number] = gradient

    with calls_observed("test", own, groups, on_gradient) as uses:  # type: ignore[arg-type]
        output = functional_call(model, own, (x,))
        leaves = [t for all_ in uses.values() for use in all_ for t in use.leaves]
        torch.autograd.grad(output.sum(), [t for t in leaves if t is not None])
        left = leaves_of(output)
    return uses, gradients, {name for name, p in own.items() if id(p) in left}


class Shared(nn.Module):
    """A kernel of two layers, one of which has a bias, and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 3, 2)
        self.second = nn.Conv1d(2, 3, 2, stride=2, bias=False)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        once = torch.relu_(self.first(x)).sum(2) + self.second(x).sum(2)
        return torch.as_tensor(self.scale.T * once)


def test_names() -> None:
    model, x = Shared().double(), noise_tensor((4, 2, 5))
    uses, gradients, left = seen(model, x, {"first.weight", "first.bias"})
    assert list(uses) == ["first.weight"]
    first, second = uses["first.weight"]
    assert first.names == ("first.weight", "first.bias")
    assert second.names == ("first.weight", None)
    assert second.conv.dims[0].stride == 2
    assert second.leaves[0] is not None and second.leaves[1] is None
    assert_close(first.x, x)
    assert not left
    assert set(gradients) == {("first.weight", 0), ("first.weight", 1)}
    expected = (model.first(x) > 0).double()
    assert_close(gradients["first.weight", 0], expected)


def test_biases_alone_and_other_uses() -> None:
    model, x = Shared().double(), noise_tensor((4, 2, 5))
    uses, _, left = seen(model, x, {"first.bias", "scale"})
    assert list(uses) == ["first.bias"] and left == {"scale"}
    (use,) = uses["first.bias"]
    assert use.names == (None, "first.bias") and use.leaves[0] is None


def test_average_of_groups() -> None:
    layer, x = nn.Conv2d(4, 6, 2, groups=2).double(), noise_tensor((3, 4, 3, 3))
    uses, _, _ = seen(layer, x, {"weight", "bias"}, "average")
    (use,) = uses["weight"]
    assert (use.conv.groups, use.conv.in_channels, use.conv.out_channels) == (1, 2, 6)
    assert_close(use.x, (x[:, :2] + x[:, 2:]) / 2)


@pytest.mark.filterwarnings("ignore")
def test_compiled_models_run_eagerly() -> None:
    layer, x = nn.Linear(3, 2).double(), noise_tensor((4, 3))
    compiled: Any = torch.compile(layer, backend="aot_eager")
    compiled(x)
    uses, gradients, left = seen(compiled, x, {"_orig_mod.weight", "_orig_mod.bias"})
    (use,) = uses["_orig_mod.weight"]
    assert use.names == ("_orig_mod.weight", "_orig_mod.bias") and not left
    assert_close(gradients["_orig_mod.weight", 0], torch.ones(4, 2).double())


def test_without_gradients_nothing_is_seen() -> None:
    weight, x = noise_tensor((2, 3)).requires_grad_(), noise_tensor((4, 3))
    with (
        calls_observed("test", {"weight": weight}, "separate", print) as uses,
        torch.no_grad(),
    ):
        F.linear(x, weight)
    assert not uses
