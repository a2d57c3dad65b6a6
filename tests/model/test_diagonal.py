"""The GGN's diagonal against Jacobians and Hessians by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from tests.model import reference
from tests.model.networks import (
    MODELS,
    Normalised,
    Shared,
    Tied,
    Words,
    model_and_data,
)
from tests.strategies import BATCHES, examples, module_input, modules, noise_tensor
from tn_extensions import memory_budget
from tn_extensions.model import ggn_diagonal


def check(model: nn.Module, loss: Any, data: Any, **options: Any) -> None:
    expected = reference.ggn_diagonal(model, loss, data)
    assert_close(ggn_diagonal(model, loss, data, **options), expected)


@examples(40)
@given(case=st.data())
def test_every_convolution(case: st.DataObject) -> None:
    module, sizes = case.draw(modules())
    x = module_input(module, sizes, case.draw(BATCHES))
    model = nn.Sequential(module, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).double()
    with torch.no_grad():
        y = noise_tensor(model(x).shape)
    check(model, nn.MSELoss(), [(x, y)])


@pytest.mark.parametrize("budget", [1, 2**28])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_uses(make: Any, budget: int) -> None:
    model, x, y = model_and_data(make)
    with memory_budget(budget):
        check(model, nn.CrossEntropyLoss(), [(x[:2], y[:2]), (x[2:], y[2:])])


def test_embeddings_and_attention() -> None:
    words = torch.arange(12).reshape(3, 4) % 5
    data = [(words, torch.tensor([0, 4, 2]))]
    check(Words().double(), nn.CrossEntropyLoss(), data)


WEIGHTS = torch.tensor([0.5, 2.0, 1.0]).double()
LOSSES: dict[str, Any] = {
    "cross entropy": nn.CrossEntropyLoss(),
    "weights": nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1, reduction="sum"),
    "ignored": nn.CrossEntropyLoss(ignore_index=1),
    "square": nn.MSELoss(reduction="sum"),
    "mean square": nn.MSELoss(),
    "binary": nn.BCEWithLogitsLoss(pos_weight=WEIGHTS),
}


@pytest.mark.parametrize("is_sequence", [False, True])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_and_batches(loss: Any, is_sequence: bool) -> None:
    """Of several loss terms a datum, too, and data that can be read only once."""
    layers: list[nn.Module] = [nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Conv1d(3, 3, 2)]
    model = nn.Sequential(*layers).double()
    if not is_sequence:
        model.append(nn.AdaptiveAvgPool1d(1)).append(nn.Flatten())
    is_classes = isinstance(loss, nn.CrossEntropyLoss)
    if is_sequence and not is_classes:
        # their outputs are on the last axis
        model.append(nn.Unflatten(2, (1, 3))).append(nn.Flatten(1, 2))
    data = []
    for num_data in (2, 1):
        x = noise_tensor((num_data, 2, 6))
        with torch.no_grad():
            output = model(x)
        y = torch.randint(3, (num_data, *output.shape[2:])) if is_classes else output
        data.append((x, y if is_classes else y.sigmoid()))
    expected = reference.ggn_diagonal(model, loss, data)
    assert_close(ggn_diagonal(model, loss, iter(data)), expected)
    one = reference.ggn_diagonal(model, loss, data[:1])
    assert_close(ggn_diagonal(model, loss, data[0]), one)


def test_monte_carlo() -> None:
    model, x, y = model_and_data(Tied)
    # 20 samples of 100 copies of the data are as many as 2000 of each
    options: dict[str, Any] = {"fisher_type": "mc", "mc_samples": 20}
    copies = x.repeat(100, *[1] * (x.dim() - 1)), y.repeat(100)
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")):
        expected = reference.ggn_diagonal(model, loss, [(x, y)])
        found = ggn_diagonal(model, loss, copies, **options)
        for name, own in expected.items():
            own = own * (100 if loss.reduction == "sum" else 1)
            bound = 0.05 * float(own.max())
            assert_close(found[name], own, rtol=0.25, atol=bound)
    state = torch.get_rng_state()
    first, second, other = (
        ggn_diagonal(model, loss, (x, y), fisher_type="mc", seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first["last.weight"], second["last.weight"])
    assert not torch.equal(first["last.weight"], other["last.weight"])


@pytest.mark.parametrize("make", [Shared, Normalised])
def test_few_data(make: Any) -> None:
    model, x, y = model_and_data(make)
    loss = nn.CrossEntropyLoss()
    whole = ggn_diagonal(model, loss, (x, y))
    assert_close(ggn_diagonal(model, loss, [(x, y), (x[:0], y[:0])]), whole)
    empty = ggn_diagonal(model, loss, [(x[:0], y[:0])])
    assert all(not own.any() for own in empty.values())
    for options in ({"fisher_type": "type-2"}, {"fisher_type": "mc"}):
        one = ggn_diagonal(model, loss, [(x[:0], y[:0]), (x[:1], y[:1])], **options)
        assert all(own.isfinite().all() for own in one.values())


def test_half_precision() -> None:
    model, x, y = model_and_data(Normalised)
    loss = nn.CrossEntropyLoss()
    expected = ggn_diagonal(model, loss, (x, y))
    x = x.bfloat16()
    found = [ggn_diagonal(model.bfloat16(), loss, (x, y))]
    with torch.autocast("cpu", torch.bfloat16):
        found.append(ggn_diagonal(model.float(), loss, (x.float(), y)))
    for name, own in expected.items():
        for each in found:
            assert each[name].dtype == torch.float32
            bound = 0.05 * float(own.max())
            assert_close(each[name].double(), own, rtol=0.1, atol=bound)


def test_some_parameters() -> None:
    model, x, y = model_and_data(Normalised)
    loss = nn.CrossEntropyLoss()
    expected = reference.ggn_diagonal(model, loss, [(x, y)])
    model[0].bias.requires_grad_(False)
    for params in (["0.weight", "0.bias", "4.bias"], None):
        found = ggn_diagonal(model, loss, (x, y), params=params)
        names = expected.keys() if params is None else params
        assert_close(found, {n: expected[n] for n in names if n != "0.bias"})


def test_nothing_changes() -> None:
    """No mode, gradient, hook or graph is left, after errors neither."""
    model, x, y = model_and_data(Normalised)
    model[2].train()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def broken(*_: Any) -> Tensor:
        raise OSError

    ggn_diagonal(model, nn.CrossEntropyLoss(), (x, y))
    handle = model[-1].register_forward_hook(broken)
    with pytest.raises(OSError):
        ggn_diagonal(model, nn.CrossEntropyLoss(), (x, y))
    handle.remove()
    assert [module.training for module in model.modules()] == modes
    assert_close(dict(model.state_dict()), state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for module in model.modules():
        assert not (module._forward_hooks or module._backward_hooks)
        assert "forward" not in vars(module)
    assert len(torch.overrides._get_current_function_mode_stack()) == 0
