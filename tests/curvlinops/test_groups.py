"""Factors of groups of parameters, as curvlinops' next line has them.

They are made without curvlinops: these tests run with whatever release is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from tests.backpack.run import images, targets
from tests.messages import assert_in_form
from tests.strategies import noise_tensor
from tn_extensions.curvlinops.groups import GroupFactors, ObservedParameters
from tn_extensions.curvlinops.stored import kept
from tn_extensions.layers.passes import BackwardPasses

NAME = "GroupFactors"
Model = Callable[[dict[str, Tensor], Any], Tensor]


def passes(model: Any, params: dict[str, Tensor], data: Any, **options: Any) -> Any:
    """Factors of a module or a function."""
    if isinstance(model, nn.Module):
        model = partial(of_module, model)
    own = ObservedParameters(
        NAME,
        params,
        options.pop("groups", "separate"),
        options.pop("is_separate", False),
    )
    approx = options.pop("kfac_approx", "expand")
    chosen: dict[str, Any] = {
        "fisher": options.pop("fisher_type", "type-2"),
        "mc_samples": 1,
        "seed": 0,
        "device": torch.device("cpu"),
        "num_data": sum(len(y) for _, y in data),
        "terms_per_datum": 1,
        "batch_size_fn": len,
    }
    made = BackwardPasses(
        NAME,
        partial(model, own.tensors),
        options.pop("loss", nn.MSELoss()),
        lambda _: iter(data),
        own,
        **(chosen | options),
    )
    return GroupFactors(made, own, approx)


def of_module(module: nn.Module, params: dict[str, Tensor], x: Any) -> Tensor:
    return functional_call(module, params, (x,))


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """Copy a model's parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def exact(model: Any, loss: Any, params: Mapping[str, Tensor], data: Any) -> Tensor:
    """Compute the GGN by Jacobians and Hessians, in the parameters' order."""
    flat = torch.cat([p.flatten() for p in params.values()])
    shapes = [p.shape for p in params.values()]
    function = partial(of_module, model) if isinstance(model, nn.Module) else model
    total = torch.zeros(len(flat), len(flat), dtype=flat.dtype)
    num_data = sum(len(y) for _, y in data)
    for x, y in data:

        def outputs(vector: Tensor, x: Tensor = x) -> Tensor:
            parts = vector.split([shape.numel() for shape in shapes])
            own = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
            return function(dict(zip(params, own, strict=True)), x)

        found = outputs(flat)
        jacobian = torch.autograd.functional.jacobian(outputs, flat).flatten(0, -2)
        hessian = torch.autograd.functional.hessian(lambda f, y=y: loss(f, y), found)
        hessian = hessian.reshape(found.numel(), -1)
        scale = 1.0 if loss.reduction == "sum" else len(y) / num_data
        total += scale * jacobian.T @ hessian @ jacobian
    return total


def blocks(
    found: Any, params: Mapping[str, Tensor], of_block: Callable[[Any], list[Tensor]]
) -> Tensor:
    """Return the matrix of all groups' blocks, in the parameters' order."""
    starts, start = {}, 0
    for name, p in params.items():
        starts[name] = start
        start += p.numel()
    total = torch.zeros(start, start, dtype=torch.float64)
    for group in found.parameters.mapping:
        key = tuple(group.values())
        matrices = of_block(key)
        channels = len(params[key[0]])
        rows = [
            starts[name] + torch.arange(params[name].numel()).view(channels, -1)
            for name in key
        ]
        positions = torch.cat(rows, 1).flatten().tensor_split(len(matrices))
        for own, matrix in zip(positions, matrices, strict=True):
            total[own[:, None], own] = matrix
    return total


def products(factors: Any, key: Any) -> list[Tensor]:
    inputs, gradients = factors
    left = gradients[key] if gradients[key].dim() == 3 else gradients[key][None]
    if key not in inputs:
        return list(left)
    right = inputs[key] if inputs[key].dim() == 3 else inputs[key][None]
    return [torch.kron(b, a) for b, a in zip(left, right, strict=True)]


class DeepLinear(nn.Module):
    """Linear in its input, so that KFAC is exact (Eschenhagen et al. 2023)."""

    def __init__(self, layer: Any, approx: str) -> None:
        super().__init__()
        self.layer, self.approx = layer, approx
        self.last = nn.Linear(layer.out_channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.layer(x).flatten(2).mT)
        return output if self.approx == "expand" else output.mean(1)


LAYERS = {
    "circular": (nn.Conv1d(4, 6, 3, padding=2, dilation=2, padding_mode="circular"), 7),
    "grouped": (nn.Conv2d(4, 6, (2, 3), stride=2, padding="valid", groups=2), 5),
    "same": (nn.Conv2d(4, 4, (2, 4), padding="same", groups=4), 4),
    "3d": (nn.Conv3d(4, 2, 2, bias=False), 3),
}


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize(("layer", "side"), LAYERS.values(), ids=LAYERS)
def test_exact_for_deep_linear_networks(layer: Any, side: int, approx: str) -> None:
    model = DeepLinear(layer, approx).double()
    x = images(3, 4, *[side] * (layer.weight.dim() - 2))
    with torch.no_grad():
        y = noise_tensor(model(x).shape)
    data, params = [(x[:1], y[:1]), (x[1:], y[1:])], parameters(model)
    terms = y[0, ..., 0].numel()
    own = passes(model, params, data, kfac_approx=approx, terms_per_datum=terms)
    factors = own.factors()
    found = blocks(own, params, partial(products, factors))
    expected = exact(model, nn.MSELoss(), params, data)
    assert_close(found[found != 0], expected[found != 0])
    assert_close(found.diagonal(), expected.diagonal())


LOSSES = {
    "weighted": nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2, 3]).double()),
    "ignored": nn.CrossEntropyLoss(ignore_index=1),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.2, reduction="sum"),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_options_of_the_loss(loss: Any) -> None:
    """Exact for linear models on data that are all alike."""
    model, x = nn.Linear(4, 3).double(), images(1, 4).repeat(3, 1)
    data, params = [(x, torch.tensor([0, 1, 2]))], parameters(model)
    own = passes(model, params, data, loss=loss)
    found = blocks(own, params, partial(products, own.factors()))
    assert_close(found, exact(model, loss, params, data))


class Tied(nn.Module):
    """Layers of one kernel, side by side; biases are their own, shared, or missing."""

    def __init__(self, biases: str) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2, bias=biases != "none")
        self.second = nn.Linear(3, 2, bias=biases in {"own", "shared"})
        self.second.weight = self.first.weight
        if biases == "shared":
            self.second.bias = self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x[:, :3]), self.second(x[:, 3:])], 1)


@pytest.mark.parametrize("kind", ["factors", "corrected"])
@pytest.mark.parametrize(
    ("biases", "is_separate"),
    [
        ("none", False),
        ("shared", False),
        ("shared", True),
        ("own", True),
        ("one", True),
    ],
)
def test_tied_kernels(biases: str, is_separate: bool, kind: str) -> None:
    """Exact for a datum and paths that do not meet."""
    model = Tied(biases).double()
    x, y = images(1, 6), images(1, 4)
    data, params = [(x, y)], parameters(model)
    own = passes(model, params, data, is_separate=is_separate)
    made = getattr(own, kind)()
    of_block = products if kind == "factors" else eigen
    found = blocks(own, params, partial(of_block, made))
    expected = exact(model, nn.MSELoss(), params, data)
    of_group = {
        name: n
        for n, group in enumerate(own.parameters.mapping)
        for name in group.values()
    }
    number = torch.cat(
        [torch.full((p.numel(),), of_group[n]) for n, p in params.items()]
    )
    assert_close(found, expected * (number == number[:, None]))
    assert_close(found.diagonal(), expected.diagonal())


def eigen(made: Any, key: Any) -> list[Tensor]:
    right, left, values = (each.get(key) for each in made)
    left = left if left.dim() == 3 else left[None]
    values = values.reshape(len(left), -1)
    bases = list(left)
    if right is not None:
        rights = right if right.dim() == 3 else right[None]
        both = zip(left, rights, strict=True)
        bases = [torch.kron(b.contiguous(), a.contiguous()) for b, a in both]
    return [q * v @ q.T for q, v in zip(bases, values, strict=True)]


def test_corrected_eigenvalues_are_second_moments() -> None:
    """Of single data's gradients, by automatic differentiation, in the bases."""
    conv = nn.Conv1d(4, 6, 3, groups=2, padding=1)
    model = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(30, 3)).double()
    x, y = images(4, 4, 5), targets(4)
    params = parameters(model)
    data, loss = [(x[:1], y[:1]), (x[1:], y[1:])], nn.CrossEntropyLoss(reduction="sum")
    own = passes(model, params, data, loss=loss, fisher_type="empirical")
    right, left, values = own.corrected()
    key = "0.weight", "0.bias"
    expected = torch.zeros(2, 3, 7).double()
    for datum, label in zip(x.split(1), y.split(1), strict=True):
        of_datum = [model[0].weight, model[0].bias]
        weight, bias = torch.autograd.grad(loss(model(datum), label), of_datum)
        both = torch.cat([weight.reshape(2, 3, 6), bias.reshape(2, 3, 1)], 2)
        expected += (left[key].mT @ both @ right[key]).square()
    assert_close(values[key], expected)
    assert own.parameters.mapping == [
        {"W": "0.weight", "b": "0.bias"},
        {"W": "3.weight", "b": "3.bias"},
    ]


def test_functions_of_parameters() -> None:
    """The model need not be a module; kernels may be used several times."""

    def model(params: dict[str, Tensor], x: Tensor) -> Tensor:
        hidden = F.conv1d(x, params["kernel"], params["bias"])
        hidden = hidden + F.conv1d(x.flip(2), params["kernel"])
        return F.linear(hidden.flatten(1), params["last"])

    shapes = {"last": (2, 6), "kernel": (3, 2, 2), "bias": (3,)}
    params = {name: noise_tensor(shape) for name, shape in shapes.items()}
    x, y = images(3, 2, 3), images(3, 2)
    data = [(x, y)]
    own = passes(model, params, data, is_separate=True)
    inputs, gradients = own.factors()
    assert own.parameters.mapping == [{"W": "last"}, {"W": "kernel"}, {"b": "bias"}]
    patches = torch.cat([x.unfold(2, 2, 1), x.flip(2).unfold(2, 2, 1)], 2)
    rows = patches.transpose(1, 2).flatten(2)
    assert_close(inputs["kernel",], torch.einsum("npi,npj->ij", rows, rows) / 3 / 4)
    last = params["last"].view(2, 3, 2)
    of_bias = torch.einsum("vcp,vdp->cd", last, last)
    assert_close(gradients["bias",], of_bias)
    assert_close(gradients["kernel",], 2 * of_bias)
    # the parameters, and what they are part of, are as they were
    assert not any(p.requires_grad for p in params.values())


def test_average_of_groups() -> None:
    """Inputs are averaged over groups, and there is one pair of factors."""
    conv = nn.Conv2d(4, 6, 2, groups=2).double()
    x = images(3, 4, 2, 2)
    data, params = [(x, images(3, 6, 1, 1))], parameters(conv)
    own = passes(conv, params, data, groups="average", terms_per_datum=6)
    inputs, gradients = own.factors()
    averaged = x.view(3, 2, 2, 2, 2).mean(1).flatten(1)
    with_one = torch.cat([averaged, torch.ones(3, 1)], 1)
    key = "weight", "bias"
    assert_close(inputs[key], with_one.T @ with_one / 3)
    assert gradients[key].shape == (6, 6)
    separate = passes(conv, params, data, terms_per_datum=6).factors()
    assert [factors[key].shape for factors in separate] == [(2, 9, 9), (2, 3, 3)]


def test_few_data_keep_low_rank_factors() -> None:
    model = nn.Linear(20, 12).double()
    params = parameters(model)
    data = [(images(3, 20), images(3, 12))]
    own = passes(model, params, data, fisher_type="empirical")
    inputs, gradients = own.factors()
    key = "weight", "bias"
    assert kept(inputs)[key].shape == (1, 3, 21)
    with_one = torch.cat([data[0][0], torch.ones(3, 1)], 1)
    assert_close(inputs[key], with_one.T @ with_one / 3)
    assert kept(gradients)[key].shape == (1, 3, 12)


def test_closest_products() -> None:
    """Of a joint block, of a kernel alone, and of a bias, which is the block itself."""
    conv = nn.Conv1d(2, 3, 2, stride=2)
    layers = conv, nn.Tanh(), nn.Flatten(), nn.Linear(6, 3, bias=False)
    model = nn.Sequential(*layers).double()
    x, y = images(4, 2, 4), targets(4)
    data, loss = [(x[:3], y[:3]), (x[3:], y[3:])], nn.CrossEntropyLoss()
    params = parameters(model)
    for is_separate in (False, True):
        own = passes(model, params, data, loss=loss, is_separate=is_separate)
        inputs, gradients = own.nearest(1e-12, 2000)
        ggn = exact(model, loss, params, data)
        joint = torch.arange(12).view(3, 4), torch.arange(12, 15).view(3, 1)
        positions = {("3.weight",): torch.arange(15, 33)}
        if is_separate:
            positions |= {("0.weight",): joint[0], ("0.bias",): joint[1]}
        else:
            positions["0.weight", "0.bias"] = torch.cat(joint, 1)
        for key, rows in positions.items():
            block = ggn[rows.flatten()[:, None], rows.flatten()]
            if key not in inputs:
                assert_close(gradients[key], block)
                continue
            sides = 2 * (3, len(block) // 3)
            rearranged = block.reshape(sides).transpose(1, 2).reshape(9, -1)
            left, values, right = torch.linalg.svd(rearranged, full_matrices=False)
            best = values[0] * torch.outer(left[:, 0], right[0])
            found = torch.outer(gradients[key].flatten(), inputs[key].flatten())
            assert_close(found, best, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", ["factors", "corrected", "nearest"])
def test_other_uses_are_refused(kind: str) -> None:
    data = [(images(2, 3), images(2, 3))]
    params = {"weight": noise_tensor((3, 3))}
    arguments = (1e-3, 5) if kind == "nearest" else ()

    def compute(model: Model, params: dict[str, Tensor], **options: Any) -> None:
        own = [(images(2, 6), images(2, 4))] if len(params) == 3 else data
        getattr(passes(model, params, own, **options), kind)(*arguments)

    models: list[Model] = [
        lambda params, x: x @ params["weight"],
        lambda params, x: F.linear(x, params["weight"]) * params["weight"].sum(),
        lambda params, x: F.linear(x, params["weight"].tanh()),
    ]
    for model in models:
        with pytest.raises(
            NotImplementedError, match="not in supported layers"
        ) as found:
            compute(model, params)
        message = str(found.value).removeprefix(
            "Found parameters that are not in supported layers: "
        )
        assert_in_form(ValueError(message), NAME, "params weight")
    both = Tied("own").double()
    with pytest.raises(ValueError, match="conflicting biases") as error:
        compute(partial(of_module, both), parameters(both))
    assert_in_form(error.value, NAME, "kernel first.weight")

    def shared_bias(params: dict[str, Tensor], x: Tensor) -> Tensor:
        hidden = F.linear(x, params["weight"], params["bias"])
        return F.linear(hidden, params["other"], params["bias"])

    shapes = {"weight": (3, 3), "bias": (3,), "other": (3, 3)}
    three = {name: noise_tensor(shape) for name, shape in shapes.items()}
    with pytest.raises(NotImplementedError, match="one kernel each"):
        getattr(passes(shared_bias, three, data, is_separate=True), kind)(*arguments)


def test_layers_that_differ_between_batches() -> None:
    def model(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.linear(x, params["weight"], params["bias"] if len(x) == 1 else None)

    params = {"weight": noise_tensor((3, 3)), "bias": noise_tensor((3,))}
    data = [(images(n, 3), images(n, 3)) for n in (1, 2)]
    with pytest.raises(NotImplementedError, match="in each batch"):
        passes(model, params, data).factors()


def test_kernels_of_two_kinds() -> None:
    def model(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.conv_transpose1d(F.conv1d(x, params["w"]), params["w"]).sum(2)

    data = [(images(2, 2, 4), images(2, 2))]
    with pytest.raises(NotImplementedError, match="of one kind") as error:
        passes(model, {"w": noise_tensor((3, 2, 2))}, data).factors()
    assert_in_form(error.value, NAME, "w")
