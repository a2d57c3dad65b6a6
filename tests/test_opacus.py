"""Opacus with our samplers, against the gradient of each sample alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opacus import PrivacyEngine
from opacus.grad_sample import (
    GradSampleModule,
    GradSampleModuleFastGradientClipping,
    register_grad_sampler,
)
from opacus.grad_sample.conv import compute_conv_grad_sample
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import tn_extensions.opacus as ours
from tests.strategies import BATCHES, examples, module_input, modules

REGISTRIES = (
    GradSampleModule.GRAD_SAMPLERS,
    GradSampleModuleFastGradientClipping.GRAD_SAMPLERS,
    GradSampleModuleFastGradientClipping.NORM_SAMPLERS,
)


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    ours.register()
    yield
    ours.unregister()


def loss_of(output: Tensor) -> Tensor:
    return output.flatten(1).sin().sum(1).mean()


def expected_gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    each = [
        torch.autograd.grad(loss_of(model(one[None])), model.parameters()) for one in x
    ]
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, map(torch.stack, zip(*each, strict=True)), strict=True))


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    wrapped = GradSampleModule(model)
    loss_of(wrapped(x)).backward()
    found = {name: p.grad_sample for name, p in model.named_parameters()}
    wrapped.remove_hooks()
    return found


def norms(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    wrapped = GradSampleModuleFastGradientClipping(model)
    loss_of(wrapped(x)).backward()
    found = {name: p._norm_sample for name, p in model.named_parameters()}
    wrapped.remove_hooks()
    return found


def check(model: nn.Module, x: Tensor) -> None:
    expected = expected_gradients(model, x)
    assert_close(gradients(model, x), expected)
    wanted = {name: each.flatten(1).norm(dim=1) for name, each in expected.items()}
    assert_close(norms(model, x), wanted)


@examples(60)
@given(case=st.data())
def test_every_convolution(case: st.DataObject) -> None:
    module, sizes = case.draw(modules())
    x = module_input(module, sizes, case.draw(BATCHES))
    check(nn.Sequential(module), x)


def test_size_of_a_transposed_convolutions_output() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ConvTranspose2d(2, 3, 3, stride=3).double()

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.layer(
                x, output_size=[x.shape[2] * 3 + 1, x.shape[3] * 3 + 2]
            )
            return output

    check(Up(), torch.randn(3, 2, 4, 3, dtype=torch.float64))


def test_frozen_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)).double()
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    wrapped = GradSampleModule(model)
    loss_of(wrapped(x)).backward()
    assert not hasattr(model[0].weight, "grad_sample")
    assert not hasattr(model[1].bias, "grad_sample")
    assert model[0].bias.grad_sample.shape == (2, 2)


def test_half_precision_keeps_the_dtype_of_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3)).bfloat16()
    x = torch.randn(2, 2, 5, 5, dtype=torch.bfloat16)
    assert {g.dtype for g in gradients(model, x).values()} == {torch.bfloat16}


def test_gradients_that_are_zero_have_norm_zero() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding_mode="circular", padding=1)
    ).double()
    wrapped = GradSampleModuleFastGradientClipping(model)
    (wrapped(torch.randn(3, 1, 4, 4, dtype=torch.float64)) * 0).sum().backward()
    assert not wrapped.get_norm_sample().any()
    assert_close(wrapped.get_clipping_coef(), torch.ones(3).double())


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_private_training_with_empty_batches(mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )
    former = [p.detach().clone() for p in model.parameters()]
    data = TensorDataset(torch.randn(6, 1, 4, 4), torch.arange(6) % 2)
    # most of such samples are empty
    loader = DataLoader(data, batch_size=1)
    options: dict[str, Any] = {"grad_sample_mode": mode}
    made = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        criterion=nn.CrossEntropyLoss(),
        **options,
    )
    if mode == "ghost":
        private, optimizer, criterion, batches = made
    else:
        (private, optimizer, batches), criterion = made, nn.CrossEntropyLoss()
    sizes = []
    for _ in range(3):
        for x, y in batches:
            sizes.append(len(x))
            optimizer.zero_grad()
            criterion(private(x), y).backward()
            optimizer.step()
    assert 0 in sizes
    assert max(sizes) > 0
    for p, before in zip(model.parameters(), former, strict=True):
        assert p.isfinite().all()
        assert not torch.equal(p, before)


def test_a_convolution_used_twice_needs_gradients_instead_of_norms() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv1d(2, 2, 3, padding=1, groups=2).double()

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.layer(self.layer(x).tanh())
            return output

    model, x = Twice(), torch.randn(3, 2, 5, dtype=torch.float64)
    assert_close(gradients(model, x), expected_gradients(model, x))
    with pytest.raises(NotImplementedError, match="tying"):
        norms(Twice(), x)
    ours.unregister()
    ours.register(norms=False)
    try:
        model = Twice()
        wanted = expected_gradients(model, x)
        assert_close(
            norms(model, x), {k: g.flatten(1).norm(dim=1) for k, g in wanted.items()}
        )
    finally:
        ours.register()


def test_unregister_restores_what_was_there() -> None:
    with_ours = [dict(registry) for registry in REGISTRIES]
    ours.register()
    assert [*REGISTRIES] == with_ours
    ours.unregister()
    try:
        assert nn.ConvTranspose2d not in REGISTRIES[0]
        assert nn.Conv2d not in REGISTRIES[2]
        assert REGISTRIES[0][nn.Conv2d].__module__ == "opacus.grad_sample.conv"
        assert REGISTRIES[1][nn.Conv2d] is REGISTRIES[0][nn.Conv2d]
        before = [dict(registry) for registry in REGISTRIES]
        ours.unregister()
        assert [*REGISTRIES] == before
    finally:
        ours.register()
    assert [*REGISTRIES] == with_ours


def test_unregister_leaves_what_somebody_registered_since() -> None:
    @register_grad_sampler(nn.Conv1d)
    def own(layer: Any, activations: Any, backprops: Any) -> Any:
        raise NotImplementedError

    try:
        ours.unregister()
        assert REGISTRIES[0][nn.Conv1d] is own
    finally:
        # Opacus' own, which is what the other tests' registration replaces
        register_grad_sampler(nn.Conv1d)(compute_conv_grad_sample)
        ours.register()
