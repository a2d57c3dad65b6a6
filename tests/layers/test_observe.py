"""Uses of what is observed in forward passes, and backward passes to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.messages import assert_in_form
from tests.strategies import noise_tensor
from tn_extensions.layers.engine import leaves_of
from tn_extensions.layers.hooks import on_call
from tn_extensions.layers.module import Groups, Pairs, Use
from tn_extensions.layers.observe import Observed, Uses, forward_pass


@contextmanager
def seen(
    model: Any, x: Tensor, names: set[str], groups: Groups = "separate"
) -> Iterator[tuple[Tensor, Uses, set[str]]]:
    """Output, uses, and which parameters are in the graph."""
    own = {
        name: p.detach().requires_grad_()
        for name, p in model.named_parameters()
        if name in names
    }
    observed = Observed("test", {id(p): name for name, p in own.items()}, groups)

    def call(x: Tensor) -> Tensor:
        return functional_call(model, own, (x,))

    with forward_pass(call, x, len(x), observed) as (output, uses):
        left = leaves_of(output)
        yield output, uses, {name for name, p in own.items() if id(p) in left}
    assert not uses


def backward(output: Tensor, uses: Uses, *vectors: Tensor) -> dict[str, list[Pairs]]:
    """Return the uses and gradients of each pass, by name."""
    found: dict[str, list[Pairs]] = {}

    def on_pairs(name: str, pairs: Pairs) -> None:
        assert not torch.is_grad_enabled()
        found.setdefault(name, []).append(pairs)

    passed = [*uses.backward(output, vectors, on_pairs)]
    assert len(passed) == len(vectors)
    return found


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
    """Each is shown with all uses that have it, once a pass."""
    model, x = Shared().double(), noise_tensor((4, 2, 5))
    with seen(model, x, {"first.weight", "first.bias"}) as (output, uses, left):
        assert list(uses) == ["first.weight"] and not left
        first, second = uses["first.weight"]
        assert first.names == ("first.weight", "first.bias")
        assert second.names == ("first.weight", None)
        assert second.conv.dims[0].stride == 2
        assert_close(first.x, x)
        g = noise_tensor((2, 4, 3))
        found = backward(output, uses, *g)
    assert found.keys() == {"first.weight", "first.bias"}
    positive = (model.first(x) > 0).double()
    shown = found["first.weight"], found["first.bias"]
    for n, (both, (alone,)) in enumerate(zip(*shown, strict=True)):
        assert len(both) == 2
        assert_close(alone[1], positive * g[n].unsqueeze(2))
        ((_, of_second),) = [pair for pair in both if pair[0] is second]
        assert_close(of_second, g[n].unsqueeze(2).expand_as(of_second))


def test_biases_alone_and_other_uses() -> None:
    model, x = Shared().double(), noise_tensor((4, 2, 5))
    with seen(model, x, {"first.bias", "scale"}) as (_, uses, left):
        assert list(uses) == ["first.bias"] and left == {"scale"}
        (use,) = uses["first.bias"]
        assert use.names == (None, "first.bias")


def test_average_of_groups() -> None:
    layer, x = nn.Conv2d(4, 6, 2, groups=2).double(), noise_tensor((3, 4, 3, 3))
    with seen(layer, x, {"weight", "bias"}, "average") as (_, uses, _):
        (use,) = uses["weight"]
    conv = use.conv
    assert (conv.groups, conv.in_channels, conv.out_channels) == (1, 2, 6)
    assert_close(use.x, (x[:, :2] + x[:, 2:]) / 2)


@pytest.mark.filterwarnings("ignore")
def test_compiled_models_run_eagerly() -> None:
    layer, x = nn.Linear(3, 2).double(), noise_tensor((4, 3))
    compiled: Any = torch.compile(layer, backend="aot_eager")
    compiled(x)
    names = {"_orig_mod.weight", "_orig_mod.bias"}
    with seen(compiled, x, names) as (output, uses, left):
        (use,) = uses["_orig_mod.weight"]
        assert set(use.names) == names and not left
        g = noise_tensor((4, 2))
        (((_, gradient),),) = backward(output, uses, g)["_orig_mod.weight"]
    assert_close(gradient.squeeze(2), g)


def test_gradients_matter() -> None:
    """They are on in the model; where it turns them off, nothing is seen."""
    layer, x = nn.Linear(3, 2).double(), noise_tensor((4, 3))

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                fixed = self.layer(x)
            return fixed + self.layer(x)

    with torch.no_grad():
        with seen(Fixed(), x, {"layer.weight"}) as (output, uses, _):
            assert len(uses["layer.weight"]) == 1 and output.requires_grad
        assert not torch.is_grad_enabled()


def test_checkpointed_layers_are_used_once() -> None:
    """Though they are called again in each backward pass."""
    body, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double(), noise_tensor((4, 3))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(self.body, x, use_reentrant=False)
            return y

    with seen(Model(), x, {"body.0.weight"}) as (output, uses, _):
        found = backward(output, uses, *noise_tensor((2, 4, 3)))
        assert len(uses["body.0.weight"]) == 1
    assert [len(pairs) for pairs in found["body.0.weight"]] == [1, 1]


@pytest.mark.parametrize("is_half", [False, True])
def test_outputs_are_of_single_precision_or_wider(is_half: bool) -> None:
    dtype = torch.bfloat16 if is_half else torch.float64
    layer, x = nn.Linear(3, 2, dtype=dtype), torch.rand(4, 3, dtype=dtype)
    with seen(layer, x, {"weight"}) as (output, _, _):
        assert output.dtype == (torch.float32 if is_half else dtype)


# -- how far passes go


class Branches(nn.Module):
    """Two layers see the input, one of them again what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = (nn.Linear(3, 3) for _ in range(3))
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        once = torch.relu_(self.first(x)) + self.again(x)
        return torch.as_tensor(self.last(self.again(once)))


def by_calls(model: nn.Module, x: Tensor) -> Any:
    names = {id(p): name.split(".")[0] for name, p in model.named_parameters()}
    return forward_pass(model, x, len(x), Observed("test", names, "separate"))


@contextmanager
def by_hooks(model: nn.Module, x: Tensor) -> Iterator[tuple[Tensor, Uses]]:
    uses = Uses()

    def after(name: str, module: Any, x: Tensor, output: Tensor) -> None:
        use = Use.of(module, x, output, "separate")
        uses.add(name, use, output, [module.weight, module.bias])

    for name, module in model.named_children():
        on_call(module, partial(after, name))
    yield model(x), uses
    uses.clear()


@pytest.mark.parametrize("source", [by_calls, by_hooks])
@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 3)])
def test_passes_reach_all_uses(
    source: Callable[..., Any], shape: tuple[int, ...]
) -> None:
    """Also where an activation works in place, on what may be a view."""
    model, x = Branches().double(), noise_tensor(shape)
    with source(model, x) as (output, uses):
        assert {name: len(own) for name, own in uses.items()} == {
            "unused": 1,
            "first": 1,
            "again": 2,
            "last": 1,
        }
        g = noise_tensor(shape)
        found = backward(output, uses, g, 2 * g)
        # no pass goes further than it must
        assert len(uses.ends(output)) == 2
        assert all(end.shape == (3,) for end in uses.ends(output))
    assert found.keys() == {"first", "again", "last"}
    for name, passes in found.items():
        weight = model.get_submodule(name).weight
        (expected,) = torch.autograd.grad(model(x), weight, g)
        for n, pairs in enumerate(passes):
            parts = (
                torch.einsum("nip,nop->oi", use.x, gradient) for use, gradient in pairs
            )
            assert_close(sum(parts), (n + 1) * expected)


# -- what is refused


def test_rows_that_are_not_data() -> None:
    def one_row(x: Tensor) -> Tensor:
        return layer(x[:1])

    def no_rows(x: Tensor) -> Tensor:
        return layer(x[0])

    layer, x = nn.Linear(3, 2).double(), noise_tensor((4, 3))
    observed = Observed("test", {id(layer.weight): "layer"}, "separate")
    for model, found in ((one_row, "1 rows"), (no_rows, r"shape \[3\]")):
        with (
            pytest.raises(ValueError, match=f"got {found}") as error,
            forward_pass(model, x, 4, observed),
        ):
            pass
        assert_in_form(error.value, "test", "the input of layer 'layer'")


def test_what_kernels_are_computed_from() -> None:
    layer, other = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    x = noise_tensor((4, 3))
    names = {id(p): "layer" for p in layer.parameters()}
    names[id(other.weight)] = "other"
    observed = Observed("test", names, "separate", {"layer"})

    def plain(x: Tensor) -> Tensor:
        return F.linear(F.linear(x, layer.weight.sin()), torch.eye(3).double(), None)

    def foreign(x: Tensor) -> Tensor:
        return F.linear(x, layer.weight * other.weight)

    def through_a_use(x: Tensor) -> Tensor:
        return F.linear(x, F.linear(x, layer.weight)[:3] + layer.weight)

    with forward_pass(plain, x, 4, observed) as (output, uses):
        (use,) = uses["layer"]
        assert use.names == ("layer", None) and len(uses) == 1
        kernel, _ = use.computed
        assert_close(kernel, layer.weight.sin())
        assert leaves_of(kernel).keys() == {id(layer.weight)}
        assert id(layer.weight) not in leaves_of(output)
    for model in (foreign, through_a_use):
        with (
            pytest.raises(NotImplementedError, match="other ones, too") as error,
            forward_pass(model, x, 4, observed),
        ):
            pass
        assert_in_form(error.value, "test", "a kernel of layer 'layer'")
