"""Models are converted in place and back; nothing but the gradient changes."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from tests.dropout.cases import Spy, gradients
from tests.messages import assert_in_form
from tests.strategies import noise_tensor
from tn_extensions.dropout import (
    TensorDropoutConv2d,
    TensorDropoutLinear,
    convert,
    revert,
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.depthwise(self.conv(x)).relu())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Block(), nn.Flatten(), nn.Linear(144, 5)
    )
    return model.double()


X = noise_tensor((8, 3, 5, 5))


def test_only_weight_gradients_change_and_back() -> None:
    model = network()
    names = [name for name, _ in model.named_parameters()]
    parameters = [id(parameter) for parameter in model.parameters()]
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("hook"))
    exact = gradients(model, X)
    assert convert(model, {"n": 0.5, "ci": 0.5, "i1": 0.5}) is model
    assert [name for name, _ in model.named_parameters()] == names
    assert [id(parameter) for parameter in model.parameters()] == parameters
    with Spy() as spy:
        found = gradients(model, X)
    assert len(spy.sampled) == 4 and calls == ["hook"] * 2
    weights = {
        2 + number
        for number, name in enumerate(names)
        if name in ("0.weight", "2.conv.weight", "2.depthwise.weight", "4.weight")
    }
    for number, (one, other) in enumerate(zip(found, exact, strict=True)):
        assert torch.allclose(one, other) == (number not in weights)
    model.eval()
    evaluated = gradients(model, X)
    assert revert(model) is model
    assert type(model[0]) is nn.Conv2d and "keep" not in vars(model[0])
    assert all(map(torch.equal, gradients(model, X), evaluated))
    model.train()
    assert all(map(torch.equal, gradients(model, X), exact))


def test_each_layer_uses_the_indices_that_it_has() -> None:
    model = convert(network(), {"n": 0.5, "g": 0.5, "ci": 0.5, "i2": 0.7, "o1": 0.9})
    kept = {
        name: set(module.keep)  # type: ignore[arg-type]
        for name, module in model.named_modules()
        if hasattr(module, "keep")
    }
    assert kept == {
        "0": {"n", "ci", "i2", "o1"},
        "2.conv": {"n", "g", "ci", "i2", "o1"},
        "2.depthwise": {"n", "g", "i2", "o1"},
        "4": {"n", "ci", "i2"},
    }


def test_skip_and_convert_again() -> None:
    model = convert(network(), {"n": 0.5}, skip=["0", r"2\.conv", "Linear"])
    converted = [
        name for name, module in model.named_modules() if hasattr(module, "keep")
    ]
    assert converted == ["2.depthwise"]
    convert(model, {"n": 0.25}, sampler="fixed", skip=["2"])
    assert isinstance(model[0], TensorDropoutConv2d)
    assert isinstance(model[4], TensorDropoutLinear)
    depthwise: Any = model[2].depthwise
    assert depthwise.keep == {"n": 0.5}
    convert(model, {"n": 0.25})
    assert depthwise.keep == {"n": 0.25} and depthwise.sampler == "bernoulli"


@pytest.mark.parametrize(
    ("skip", "error"),
    [
        (["nope"], ValueError),
        (["0", "conv2d"], ValueError),
        (["2.conv2"], ValueError),
        (["("], ValueError),
        ([None], TypeError),
        ("Linear", TypeError),
    ],
)
def test_patterns_that_skip_nothing(skip: Any, error: type[Exception]) -> None:
    model = network()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(error) as caught:
        convert(model, {"n": 0.5}, skip=skip)
    assert_in_form(caught.value, "convert", "skip")
    assert [type(module) for module in model.modules()] == kinds


def test_one_layer_is_a_model() -> None:
    layer = nn.Conv2d(2, 2, 3)
    assert type(convert(layer, {"n": 0.5})) is TensorDropoutConv2d  # type: ignore[comparison-overlap]
    assert type(revert(layer)) is nn.Conv2d


def test_what_is_not_exactly_torchs_stays() -> None:
    parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    model = nn.Sequential(
        nn.Linear(2, 2),
        parametrised,
        nn.LazyConv2d(2, 1),
        nn.ConvTranspose1d(2, 2, 1),
        nn.Linear(2, 2, dtype=torch.complex64),
    )
    kinds = [type(module) for module in model]
    convert(model, {"n": 0.5})
    assert [type(module) for module in model][1:] == kinds[1:]


def test_trained_states_and_whole_models_are_saved_and_loaded() -> None:
    model = convert(network(), {"n": 0.5}, generator=torch.Generator())
    plain = network()
    plain.load_state_dict(model.state_dict())
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert isinstance(loaded[0], TensorDropoutConv2d)
    assert torch.equal(loaded.eval()(X), plain.eval()(X))


def test_training_reaches_a_small_loss() -> None:
    model = convert(network(), {"n": 0.5, "ci": 0.7}, sampler="norm")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    labels = torch.arange(8) % 5
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])


@pytest.mark.parametrize(
    ("arguments", "error", "argument"),
    [
        ({"model": 3}, TypeError, "model"),
        ({"model": nn.ReLU()}, ValueError, "model"),
        ({"skip": ["Conv2d", "Linear"]}, ValueError, "model"),
        ({"skip": "Conv2d"}, TypeError, "skip"),
        ({"keep": 0.5}, TypeError, "keep"),
        ({"keep": {"z": 0.5}}, ValueError, "keep"),
        ({"keep": {"o3": 0.5}}, ValueError, "keep"),
        ({"keep": {"co": 0.5}}, ValueError, "keep"),
        ({"keep": {"n": 0.0}}, ValueError, "keep['n']"),
        ({"keep": {"g": 2.0}}, ValueError, "keep['g']"),
        ({"keep": {"n": "half"}}, TypeError, "keep['n']"),
        ({"sampler": "all"}, ValueError, "sampler"),
        ({"generator": "cpu"}, TypeError, "generator"),
    ],
)
def test_bad_input_changes_nothing(
    arguments: dict[str, Any], error: type[Exception], argument: str
) -> None:
    arguments = {"model": network(), "keep": {"n": 0.5}, **arguments}
    model, keep = arguments.pop("model"), arguments.pop("keep")
    with pytest.raises(error) as caught:
        convert(model, keep, **arguments)
    assert_in_form(caught.value, "convert", argument)
    if isinstance(model, nn.Module):
        assert not any(hasattr(module, "keep") for module in model.modules())


def test_revert_refuses_what_is_no_module() -> None:
    with pytest.raises(TypeError) as caught:
        revert([nn.Linear(1, 1)])  # type: ignore[type-var]
    assert_in_form(caught.value, "revert", "model")
