"""Passes through models: rows that are not data, and models that are refused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from tests.backpack.run import images, targets
from tests.curvlinops.test_ggn_computed import (
    LAYERS,
    LoRA,
    Masked,
    check,
    jacobian_ggn,
    network,
)
from tests.curvlinops.test_kfac import dense
from tests.messages import assert_in_form
from tn_extensions import curvlinops as ours

OPERATORS = [
    ours.KFACLinearOperator,
    ours.EKFACLinearOperator,
    ours.GGNDiagonalLinearOperator,
    ours.GGNGramLinearOperator,
]
PER_DATUM = OPERATORS[1:]

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


def evaluate(op: Any) -> Tensor:
    """Have an operator compute what it holds."""
    if isinstance(op, ours.GGNGramLinearOperator):
        return op.dense()
    return torch.as_tensor(op.trace)


def build(kind: Any, model: nn.Module, x: Any, y: Tensor, **options: Any) -> Any:
    loss = options.pop("loss", nn.CrossEntropyLoss())
    options = {"check_deterministic": False} | options
    return kind(model, loss, [*model.parameters()], [(x, y)], **options)


class Frames(nn.Module):
    """Frames folded into the first axis, in an order: what is summed are frames."""

    def __init__(self, order: str, computed: bool = False) -> None:
        super().__init__()
        self.order = order
        self.conv = nn.Conv2d(2, 3, 3, stride=2)
        self.linear = Masked(3, 4) if computed else nn.Linear(3, 4)
        self.up = nn.ConvTranspose1d(4, 3, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        num_data, num_frames = x.shape[:2]
        folded = x.transpose(0, 1) if self.order == "cat" else x
        folded = folded.flatten(0, 1)
        shift = 1 if self.order == "neither" else 0
        h = self.conv(folded.roll(shift, 0)).tanh().flatten(2).mT
        h = self.up(self.linear(h).sigmoid().mT).sum(2).roll(-shift, 0)
        if self.order == "cat":
            h = h.unflatten(0, (num_frames, num_data)).transpose(0, 1)
        else:
            h = h.unflatten(0, (num_data, num_frames))
        weights = torch.arange(1.0, num_frames + 1).unsqueeze(1)
        return (h * weights).sum(1)


class Siamese(nn.Module):
    """Both views of a datum meet after the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(torch.cat([x, x.flip(1)])).tanh()
        left, right = h.chunk(2)
        return torch.as_tensor(self.last(left * right))


class PerFrame(nn.Module):
    """Outputs have a row for each frame; ``shared`` sees a row for each datum."""

    def __init__(self, is_cat: bool) -> None:
        super().__init__()
        self.shared, self.last = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()
        self.is_cat = is_cat

    def forward(self, x: Tensor) -> Tensor:
        h = self.shared(x).tanh()
        both = (h, h * 2)
        rows = torch.cat(both) if self.is_cat else torch.stack(both, 1).flatten(0, 1)
        return torch.as_tensor(self.last(rows))


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("order", ["adjacent", "cat"])
def test_frames_in_the_batch(order: str, computed: bool) -> None:
    model, x, y = Frames(order, computed), images(3, 2, 2, 5, 4), targets(3)
    check(model, x, y, nn.CrossEntropyLoss())
    if not computed:
        # the sum of squared gradients is the same in every basis
        exact = jacobian_ggn(model, x, y, nn.CrossEntropyLoss())
        op = build(ours.EKFACLinearOperator, model, x, y, fisher_type="type-2")
        assert_close(op.trace, exact.trace())


def test_siamese_and_rows_of_outputs() -> None:
    x, y = images(3, 4), targets(3)
    check(Siamese(), x, y, nn.CrossEntropyLoss())
    labels = torch.arange(6) % 3
    check(PerFrame(False), x, labels, nn.CrossEntropyLoss())
    # with the rows of a datum apart, its gradients cannot be told apart
    with pytest.raises(ValueError, match="another order") as error:
        evaluate(build(PER_DATUM[1], PerFrame(True), x, labels))
    name = "GGNDiagonalLinearOperator"
    assert_in_form(error.value, name, "rows of the input of layer 'shared'")


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("order", ["adjacent", "cat"])
def test_frames_are_positions(order: str, approx: str) -> None:
    """Factors are those of the same function without folding."""

    class Volume(nn.Module):
        def __init__(self, frames: Frames) -> None:
            super().__init__()
            self.conv = nn.Conv3d(2, 3, (1, 3, 3), stride=(1, 2, 2)).double()
            self.linear, self.up = frames.linear, frames.up
            weights = {"weight": frames.conv.weight.unsqueeze(2)}
            self.conv.load_state_dict({**weights, "bias": frames.conv.bias})

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x.transpose(1, 2)).tanh().flatten(3).movedim(1, -1)
            h = self.linear(h).sigmoid().mT
            each = torch.stack([self.up(frame) for frame in h.unbind(1)], 1)
            weights = torch.arange(1.0, x.shape[1] + 1).view(1, -1, 1)
            return (each.sum(3) * weights).sum(1)

    x, y = images(3, 2, 2, 5, 4), targets(3)
    model = Frames(order)
    found, expected = (
        build(OPERATORS[0], each, x, y, fisher_type="type-2", kfac_approx=approx)
        for each in (model, Volume(model))
    )
    assert_close(dense(found), dense(expected))


def test_rows_that_do_not_fit() -> None:
    x, y = images(3, 2, 2, 5, 4), targets(3)
    model = Frames("neither")
    for kind in PER_DATUM:
        with pytest.raises(ValueError, match="another order") as error:
            evaluate(build(kind, model, x, y))
        assert "rows of the input of layer" in str(error.value)
    reduced = {"kfac_approx": "reduce", "fisher_type": "forward-only"}
    with pytest.raises(ValueError, match="another order"):
        evaluate(build(OPERATORS[0], model, x, y, **reduced))

    class Broadcast(nn.Module):
        """One row, or one too few, for all data."""

        def __init__(self, rows: int) -> None:
            super().__init__()
            self.places, self.layer = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
            self.rows = rows

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.places(x[: self.rows].cos()).sum(0)

    for kind in OPERATORS:
        for rows in (1, 2, 0):
            with pytest.raises(ValueError, match=f"got {rows} rows") as error:
                evaluate(build(kind, Broadcast(rows), images(3, 4), y))
            assert_in_form(error.value, kind.__name__, "the input of layer 'places'")


def test_number_of_data_of_a_dictionary() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frames = Frames("adjacent")

        def forward(self, X: Any) -> Tensor:
            return torch.as_tensor(self.frames(X["x"]))

    x, y = images(3, 2, 2, 5, 4), targets(3)
    model, size = Named(), {"batch_size_fn": lambda X: len(X["x"])}
    for kind in OPERATORS:
        found = evaluate(build(kind, model, {"x": x}, y, **size))
        assert_close(found, evaluate(build(kind, model.frames, x, y)))


# -- what is refused


class Unread:
    """Data that nobody may read."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("data were read")


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_kfac_refuses_computed_kernels(make: Any) -> None:
    x = images(2, 2, 5, 4)
    model, loss = network(make(), x), nn.CrossEntropyLoss()
    own = [*model[2].parameters()]
    for kind in OPERATORS[:2]:
        with pytest.raises(NotImplementedError) as error:
            kind(model, loss, own, Unread())
        assert "layer '2' must multiply by its own parameters" in str(error.value)
        assert "\n" not in str(error.value)
        others = [*model[0].parameters(), *model[-1].parameters()]
        op = kind(model, loss, others, [(x, targets(2))], check_deterministic=False)
        assert evaluate(op).isfinite()


def test_parameters_with_other_uses() -> None:
    class Gain(nn.Linear):
        def __init__(self, *sizes: int) -> None:
            super().__init__(*sizes)
            self.gain = nn.Parameter(torch.ones(sizes[1]))

        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * self.gain

    class Product(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return input @ self.weight.T + self.bias

    class Foreign(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            kernel = self.weight * model[0].weight.sum()
            return nn.functional.linear(input, kernel)

    x, y = images(2, 4), targets(2)
    found: dict[Any, str] = {
        Gain: "gain of layer '1' must be used only in kernels",
        Product: "weight and bias of layer '1' must be used only in kernels",
        Foreign: "a kernel of layer '1' must depend on its own",
    }
    for layer, message in found.items():
        model = nn.Sequential(nn.Linear(4, 4), layer(4, 3)).double()
        for kind in OPERATORS[2:]:
            with pytest.raises(NotImplementedError, match=message):
                evaluate(build(kind, model, x, y))
    model = nn.Sequential(Gain(4, 3)).double()
    check(model, x, y, nn.CrossEntropyLoss(), [model[0].weight, model[0].bias])


@pytest.mark.parametrize("kind", OPERATORS)
def test_refusals_name_the_layer(kind: Any) -> None:
    x, y = images(3, 2, 5, 4), targets(3)
    name = kind.__name__

    class Wrapped(nn.Module):
        def __init__(self, wrap: Any) -> None:
            super().__init__()
            self.layer, self.wrap = nn.Linear(4, 3).double(), wrap

        def forward(self, x: Tensor) -> Any:
            return self.wrap(self.layer(x))

    for wrap, found in (
        (lambda out: OrderedDict(out=out, aux=out), "OrderedDict of out, aux"),
        (lambda out: (out, out), "tuple"),
    ):
        for checked in (False, True):
            options = {"check_deterministic": checked}
            with pytest.raises(TypeError, match=f"got {found}") as error:
                evaluate(build(kind, Wrapped(wrap), x[:, 0, 0], y, **options))
            assert str(error.value).startswith(f"{name}: the model's output must")

    unbatched = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten(1)).double()
    with pytest.raises(ValueError, match=r"got shape \[3, 5, 4\]") as refusal:
        evaluate(build(kind, unbatched, images(3, 5, 4), y))
    assert_in_form(refusal.value, name, "the input of layer '0'")

    with pytest.raises(NotImplementedError, match="complex64") as complex_layer:
        build(kind, nn.Sequential(nn.Linear(2, 2, dtype=torch.cfloat)), x, y)
    assert_in_form(complex_layer.value, name, "parameter '0.weight'")

    attention = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True, dropout=0)
    model = nn.Sequential(attention, nn.Flatten(), nn.Linear(20, 3)).double()
    params = [
        p
        for module in model.modules()
        if isinstance(module, nn.Linear)
        for p in module.parameters(recurse=False)
    ]
    sequences, loss = x[:, 0], nn.CrossEntropyLoss()
    for checked in (False, True):
        with pytest.raises(ValueError, match="'0.self_attn.out_proj'") as unused:
            evaluate(
                kind(model, loss, params, [(sequences, y)], check_deterministic=checked)
            )
        layer = "layer '0.self_attn.out_proj'"
        assert str(unused.value).startswith(f"{name}: {layer} must be called")

    mode = "mode" if kind in OPERATORS[2:] else "fisher_type"
    linear = nn.Sequential(nn.Linear(4, 3)).double()
    for checked in (False, True):
        options = {mode: "mc", "check_deterministic": checked}
        with pytest.raises(ValueError, match="finite") as infinite:
            evaluate(build(kind, linear, x[:, 0, 0] * torch.nan, y, **options))
        assert_in_form(infinite.value, name, "the model's output")


@pytest.mark.parametrize("kind", OPERATORS)
def test_ways_to_call_a_layer(kind: Any) -> None:
    """By name, and with the size of the output by position or by name."""

    class Up(nn.Module):
        def __init__(self, way: str) -> None:
            super().__init__()
            self.up, self.last = nn.ConvTranspose2d(2, 3, 2, 2), nn.Linear(3, 3)
            self.way = way
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            size = [11, 9]
            if self.way == "position":
                out = self.up(x, size)
            elif self.way == "name":
                out = self.up(x, output_size=size)
            else:
                out = self.up(input=x, output_size=size)
            return torch.as_tensor(self.last(input=out.tanh().mean((2, 3))))

    x, y = images(3, 2, 5, 4), targets(3)
    first, *others = (Up(way) for way in ("position", "name", "keyword"))
    expected = build(kind, first, x, y)
    if kind in OPERATORS[2:]:
        check(first, x, y, nn.CrossEntropyLoss())
    for model in others:
        model.load_state_dict(first.state_dict())
        assert_close(evaluate(build(kind, model, x, y)), evaluate(expected))


@pytest.mark.parametrize("kind", OPERATORS[2:])
def test_autocast(kind: Any) -> None:
    """Values are those without autocast, to the precision of a half."""
    norm = parametrizations.weight_norm
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), norm(nn.Conv2d(4, 4, 2, groups=2))]
    model = nn.Sequential(*layers, nn.Flatten(), LoRA(8, 3))
    x, y, loss = images(4, 2, 5, 4).float(), targets(4), nn.CrossEntropyLoss()
    with torch.autocast("cpu", torch.bfloat16):
        op = build(kind, model, x, y)
        products = op @ torch.eye(op.shape[1])
        found = evaluate(op)
    assert found.dtype == products.dtype == torch.float32
    exact = jacobian_ggn(model, x, y, loss)
    loose = {"rtol": 0.05, "atol": 0.05 * float(exact.diagonal().max())}
    diagonal = products.diagonal().double()
    if kind is ours.GGNDiagonalLinearOperator:
        assert_close(diagonal, exact.diagonal(), **loose)
    else:
        assert_close(products, found, **loose)
        assert_close(diagonal.sum(), exact.trace(), **loose)
        with torch.autocast("cpu", torch.bfloat16):
            # with the matrix there, products lose nothing
            assert_close(op @ torch.eye(op.shape[1]), found)


@pytest.mark.parametrize("kind", OPERATORS)
def test_compiled_models(kind: Any) -> None:
    """Also if they were compiled before there was anything to observe."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x, y = torch.rand(5, 3).double(), targets(5)
    expected = evaluate(build(kind, model, x, y))
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    found = evaluate(build(kind, compiled, x, y, check_deterministic=True))
    assert_close(found, expected)
