"""captum with our sample gradients, against the gradient of each sample alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from captum._utils import sample_gradient
from captum.influence import TracInCP, TracInCPFast
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

import tn_extensions.captum as ours
from tests.strategies import BATCHES, examples, module_input, modules


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    ours.register()
    yield
    ours.unregister()


def losses_of(output: Tensor) -> Tensor:
    return output.flatten(1).sin().sum(1)


def expected_gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    each = [
        torch.autograd.grad(losses_of(model(one[None])).sum(), model.parameters())
        for one in x
    ]
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, map(torch.stack, zip(*each, strict=True)), strict=True))


def check(model: Any, x: Tensor) -> None:
    expected = expected_gradients(model, x)
    wrapper = sample_gradient.SampleGradientWrapper(model)
    wrapper.add_hooks()
    # captum hooks inputs, which must require a gradient
    wrapper.compute_param_sample_gradients(
        losses_of(model(x.requires_grad_())).mean(), "mean"
    )
    wrapper.remove_hooks()
    found = {name: p.sample_grad for name, p in model.named_parameters()}
    assert_close(found, expected)


@examples(60)
@given(case=st.data())
def test_every_convolution(case: st.DataObject) -> None:
    module, sizes = case.draw(modules())
    check(nn.Sequential(module), module_input(module, sizes, case.draw(BATCHES)))


def test_a_convolution_used_twice() -> None:
    layer = nn.Conv1d(2, 2, 3, padding="same", groups=2).double()
    check(nn.Sequential(layer, nn.Tanh(), layer), torch.randn(3, 2, 5).double())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 2, padding="same", groups=2, padding_mode="circular"),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 2, 2, stride=2),
        nn.Flatten(),
        nn.Linear(32, 3),
    ).double()


def test_influence(tmp_path: Path) -> None:
    model = network()
    checkpoint = str(tmp_path / "checkpoint.pt")
    torch.save(model.state_dict(), checkpoint)
    x, y = torch.randn(5, 2, 2, 2).double(), torch.arange(5) % 3
    loss = nn.CrossEntropyLoss(reduction="mean")

    def load(model: nn.Module, path: str) -> float:
        model.load_state_dict(torch.load(path))
        return 1.0

    tracin = TracInCP(
        model,
        TensorDataset(x, y),
        [checkpoint],
        checkpoints_load_func=load,
        batch_size=2,
        loss_fn=loss,
        sample_wise_grads_per_batch=True,
    )
    found = tracin.influence((x[:2], y[:2]))
    rows = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(
                    loss(model(x[n : n + 1]), y[n : n + 1]), model.parameters()
                )
            ]
        )
        for n in range(5)
    ]
    gradients = torch.stack(rows)
    assert_close(found, gradients[:2] @ gradients.T)


def test_fast_influence_runs_on_such_a_network(tmp_path: Path) -> None:
    model = network()
    checkpoint = str(tmp_path / "checkpoint.pt")
    torch.save(model.state_dict(), checkpoint)
    x, y = torch.randn(5, 2, 2, 2).double(), torch.arange(5) % 3
    tracin = TracInCPFast(
        model,
        model[-1],
        TensorDataset(x, y),
        [checkpoint],
        checkpoints_load_func=lambda m, p: m.load_state_dict(torch.load(p)) and 1.0,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=2,
    )
    assert tracin.influence((x[:2], y[:2])).shape == (2, 5)


def test_unregister_restores_what_was_there() -> None:
    registry = sample_gradient.SUPPORTED_MODULES
    ours.register()
    assert registry[nn.Conv3d] is ours.add_sample_gradients
    ours.unregister()
    try:
        assert registry == {
            nn.Conv2d: sample_gradient.conv2d_param_grads,
            nn.Linear: sample_gradient.linear_param_grads,
        }
    finally:
        ours.register()
