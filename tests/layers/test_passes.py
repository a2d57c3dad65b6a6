"""Passes against Fishers and GGNs that are made of Jacobians."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call, jacrev
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.strategies import noise_tensor
from tn_extensions.layers.gradients import per_sample_gradients
from tn_extensions.layers.losses import Fisher
from tn_extensions.layers.module import Pairs
from tn_extensions.layers.observe import Uses
from tn_extensions.layers.passes import BackwardPasses, ObservedLayers

LOSSES = [
    nn.CrossEntropyLoss(torch.tensor([0.5, 2.0, 3.0]).double()),
    nn.CrossEntropyLoss(reduction="sum"),
    nn.MSELoss(),
    nn.BCEWithLogitsLoss(reduction="sum"),
]
SIZES = (2, 3)
"""Of batches."""


class Tokens(nn.Module):
    """A layer that is used twice, and several loss terms for each datum."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(torch.sigmoid(self.inner(x)))
        return torch.as_tensor(self.last(torch.relu_(y)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Tokens().double()


def batches(loss: Any, terms: int = 2) -> list[tuple[Tensor, Tensor]]:
    found = []
    for size in SIZES:
        x, y = noise_tensor([2, size, terms, 3])
        if isinstance(loss, nn.CrossEntropyLoss):
            # classes are on the second axis
            found.append((x, y.argmax(2)))
        else:
            found.append((x, y.sigmoid()))
    return found


class Classes(nn.Module):
    """Classes come second."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.model(x).mT)


def made(model: nn.Module, loss: Any, data: Any, **options: Any) -> BackwardPasses:
    inner = model.model if isinstance(model, Classes) else model
    assert isinstance(inner, nn.Module)
    params = [*inner.parameters()]
    mapping: dict[str, dict[str, int]] = {}
    for position, (path, _) in enumerate(inner.named_parameters()):
        name, key = path.split(".")
        mapping.setdefault(name, {})[key] = position
    arguments: dict[str, Any] = {
        "batches": lambda purpose: iter(data),
        "observed": ObservedLayers("test", inner, params, mapping, "separate"),
        "fisher": "type-2",
        "mc_samples": 1,
        "seed": 0,
        "device": torch.device("cpu"),
        "num_data": sum(SIZES),
        "terms_per_datum": 2,
        "batch_size_fn": len,
    }
    return BackwardPasses("test", model, loss, **arguments | options)


def matrices(passes: BackwardPasses) -> dict[str, Tensor]:
    """Compute the weights' blocks from outer products of gradients."""
    found: dict[str, Tensor] = {}

    def on_gradients(name: str, pairs: Pairs) -> None:
        J = per_sample_gradients(pairs, "weight").flatten(1)
        own = passes.scale(len(J)) * J.T @ J
        found[name] = found[name] + own if name in found else own

    passes.run("test", lambda _: None, on_gradients, by_datum=True, by_term=True)
    return found


def jacobian(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """Of the outputs by a weight, as a matrix."""
    params = {key: p.detach() for key, p in model.named_parameters()}
    (key,) = [key for key in params if key.endswith(f"{name}.weight")]

    def output(weight: Tensor) -> Tensor:
        return functional_call(model, params | {key: weight}, (x,))

    J: Tensor = jacrev(output)(params[key])
    return J.reshape(-1, params[key].numel())


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("is_compiled", [False, True])
def test_ggn(loss: Any, is_compiled: bool) -> None:
    """The sum over batches; of a mean over loss terms, their mean by size."""
    is_cross_entropy = isinstance(loss, nn.CrossEntropyLoss)
    model: Any = Classes(network()) if is_cross_entropy else network()
    data = batches(loss)
    passes = made(model, loss, data)
    if is_compiled:
        compiled = torch.compile(model, backend="eager")
        # hooks come after compilation
        compiled(data[0][0])
        passes.model = compiled
    found = matrices(passes)
    for name in ("inner", "last"):
        expected = torch.zeros(())
        for x, y in data:
            output = model(x).detach()
            H = hessian(lambda f, y=y: loss(f, y), output)  # type: ignore[no-untyped-call]
            J = jacobian(model, name, x)
            part = J.T @ H.reshape(len(J), len(J)) @ J
            is_mean = loss.reduction == "mean"
            expected = expected + part * (len(x) / sum(SIZES) if is_mean else 1)
        assert_close(found[name], expected)


class Outside(Tokens):
    """A model that uses a layer's weight and bias outside of it, too."""

    has_bias = True

    def forward(self, x: Tensor) -> Tensor:
        bias = self.inner.bias if self.has_bias else None
        y = nn.functional.linear(torch.sigmoid(self.inner(x)), self.inner.weight, bias)
        return torch.as_tensor(self.last(torch.relu_(y)))


def test_uses_outside_of_a_layer() -> None:
    model, loss = Outside().double(), nn.MSELoss(reduction="sum")
    data = batches(loss)
    found = matrices(made(model, loss, data))["inner"]
    J = torch.cat([jacobian(model, "inner", x) for x, _ in data])
    assert_close(found, 2 * J.T @ J)
    with torch.no_grad():
        assert_close(matrices(made(model, loss, data))["inner"], found)
    model.has_bias = False
    with pytest.raises(NotImplementedError, match="in each of its uses") as error:
        matrices(made(model, loss, data))
    assert_in_form(error.value, "test", "layer 'inner'")


@pytest.mark.parametrize("fisher", ["mc", "empirical", "forward-only"])
def test_number_of_passes(fisher: Fisher) -> None:
    """Of each batch, and the same at the second go."""
    loss = nn.MSELoss()
    passes = made(network(), loss, batches(loss), fisher=fisher)
    passes.mc_samples = 3 if fisher == "mc" else 1
    seen: list[list[Tensor]] = []
    for _ in range(2):
        own: list[Tensor] = []

        def on_gradients(name: str, pairs: Pairs, own: list[Tensor] = own) -> None:
            own += [g for _, g in pairs if name == "last"]

        passes.run("test", lambda _: None, on_gradients, by_datum=False, by_term=False)
        seen.append(own)
    assert_close(*seen, rtol=0, atol=0)
    of_batch = {"mc": 3, "empirical": 1, "forward-only": 0}[fisher]
    assert len(seen[0]) == of_batch * len(SIZES)


def test_nothing_in_lower_precision() -> None:
    """Callbacks run without autocast and without gradients."""
    loss, seen = nn.MSELoss(), []

    def on_uses(_: Uses) -> None:
        seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))

    passes = made(network(), loss, batches(loss))
    with torch.autocast("cpu"):
        passes.run("test", on_uses, lambda *_: None, by_datum=False, by_term=False)
    assert seen == [(False, False)] * len(SIZES)


def wrong() -> Iterator[tuple[str, dict[str, Any], str, type[Exception]]]:
    """Yield what is wrong, how, and what is refused."""
    unused = network()
    unused.register_module("other", nn.Linear(3, 3).double())
    yield "unused", {"model": unused}, "layer 'other'", ValueError
    x = torch.full((2, 2, 3), torch.nan).double()
    yield "nan", {"batches": lambda _: iter([(x, x)])}, "the model's output", ValueError
    long = {"batches": lambda _: iter([(x, x[:1])])}
    yield "targets", long, "targets", ValueError


@pytest.mark.parametrize(
    ("change", "argument", "kind"),
    [pytest.param(*own, id=name) for name, *own in wrong()],
)
def test_check_of_the_model(
    change: dict[str, Any], argument: str, kind: type[Exception]
) -> None:
    model, loss = change.pop("model", network()), nn.MSELoss()
    passes = made(model, loss, batches(loss), **change)
    with pytest.raises(kind) as error:
        passes.check_model(dict(model.named_children()))
    assert_in_form(error.value, "test", argument)
