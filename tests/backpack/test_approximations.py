"""Approximate diagonals of the Hessian, against dense Jacobians."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from backpack.custom_module.pad import Pad
from hypothesis import given
from torch import Tensor, nn
from torch.testing import assert_close

from tests.backpack.run import classifier, run, run_copy, targets
from tests.backpack.test_kronecker_modules import with_statistics
from tests.reference import diagonals, per_sample
from tests.strategies import examples, module_input, modules, noise_tensor
from tn_extensions import backpack as ours

EXTENSIONS = {"bl89": ours.DiagHessianBL89, "hesscale": ours.DiagHessianHesScale}


def assert_as_reference(
    name: str, model: Any, x: Tensor, loss: Any = None, y: Tensor | None = None
) -> None:
    """All parameters have the diagonal of the reference."""
    loss = nn.CrossEntropyLoss() if loss is None else loss
    z = model(x).detach()
    y = targets(len(x)) if y is None else y
    g = torch.func.grad(lambda z: loss(z, y))(z)
    h = diagonals.of_loss(loss, z, y, elementwise=name == "bl89")
    wanted = diagonals.backpropagated(copy.deepcopy(model), x, h, g)
    found: Any = run_copy(model, EXTENSIONS[name](), x, y=y, loss=loss)
    assert found.keys() == wanted.keys()
    for key, diagonal in wanted.items():
        assert_close(found[key], diagonal, rtol=1e-9, atol=1e-11, msg=f"{key} ".__add__)
        assert found[key].is_contiguous()


@pytest.mark.parametrize("name", EXTENSIONS)
@examples(25)
@given(modules(max_dims=2))
def test_convolutions(name: str, case: Any) -> None:
    module, sizes = case
    x = module_input(module, sizes, 2)
    if not module(x).numel():
        return
    first = type(module)(module.in_channels, module.in_channels, 1).double()
    model = classifier(first, nn.Sigmoid(), module, nn.Tanh(), x=x)
    assert_as_reference(name, model, x)


PASSING = [
    (nn.ReLU(), (3, 4)),
    (nn.LeakyReLU(0.2), (3, 4)),
    (nn.Sigmoid(), (3, 4)),
    (nn.LogSigmoid(), (3, 4)),
    (nn.Tanh(), (3, 4)),
    (nn.ELU(), (3, 4)),
    (nn.SELU(), (3, 4)),
    (nn.Dropout(0.5), (3, 4)),
    (nn.Identity(), (3, 4)),
    (nn.ZeroPad2d((1, 2, 0, 1)), (3, 4)),
    (Pad((1, 2), value=1.0), (3, 4)),
    (nn.MaxPool1d(2), (5,)),
    (nn.MaxPool2d(3, stride=2, padding=1), (5, 4)),
    (nn.AdaptiveMaxPool2d(2), (5, 4)),
    (nn.MaxPool3d(2, ceil_mode=True), (3, 2, 3)),
    (nn.AvgPool1d(3, stride=2, padding=1), (5,)),
    (nn.AvgPool2d((3, 2), padding=1, count_include_pad=False), (5, 4)),
    (nn.AvgPool2d(2, ceil_mode=True, divisor_override=3), (5, 3)),
    (nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True), (4, 6)),
    (nn.AvgPool3d((1, 2, 2)), (2, 4, 3)),
    (nn.AdaptiveAvgPool1d(3), (7,)),
    (nn.AdaptiveAvgPool2d((2, None)), (5, 3)),
    (nn.AdaptiveAvgPool3d((1, 2, 3)), (3, 3, 4)),
    (nn.BatchNorm1d(2), (3,)),
    (nn.BatchNorm2d(2, affine=False), (2, 3)),
    (nn.BatchNorm3d(2), (2, 1, 2)),
]


@pytest.mark.parametrize("name", EXTENSIONS)
@pytest.mark.parametrize(("module", "sizes"), PASSING, ids=str)
def test_modules(name: str, module: nn.Module, sizes: tuple[int, ...]) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(sizes) - 1]
    torch.manual_seed(0)
    x = noise_tensor((3, 2, *sizes))
    model = classifier(kind(2, 2, 1), module, nn.Sigmoid(), x=x)
    assert_as_reference(name, with_statistics(model).eval(), x)


@pytest.mark.parametrize("name", EXTENSIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["classes", "sequence", "squares", "binary"])
def test_losses(name: str, reduction: str, kind: str) -> None:
    torch.manual_seed(0)
    x = noise_tensor((3, 4, 5) if kind == "sequence" else (3, 4))
    widths = {"sequence": 2, "binary": 1}
    last = nn.Linear(6, widths.get(kind, 3))
    model = nn.Sequential(nn.Linear(x.shape[-1], 6), nn.Tanh(), last).double()
    losses = {"squares": nn.MSELoss, "binary": nn.BCEWithLogitsLoss}
    loss = losses.get(kind, nn.CrossEntropyLoss)(reduction=reduction)
    y = {
        "classes": targets(3),
        "sequence": torch.arange(6).view(3, 2) % 4,
        "squares": noise_tensor((3, 3)),
        "binary": torch.tensor([[0.0], [1.0], [1.0]]).double(),
    }[kind]
    assert_as_reference(name, model, x, loss, y)


def test_hesscale_is_exact_for_the_last_layer() -> None:
    x = noise_tensor((3, 4))
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    y = targets(3)

    def losses(z: Tensor, n: int) -> Tensor:
        return nn.functional.cross_entropy(z, y[n : n + 1], reduction="sum") / 3

    exact = per_sample.hessian_diagonals(model, x, losses)
    found: Any = run_copy(model, ours.DiagHessianHesScale(), x)
    for key in ("2.weight", "2.bias"):
        assert_close(found[key], exact[key].sum(0))
    coarse: Any = run_copy(model, ours.DiagHessianBL89(), x)
    assert not torch.allclose(coarse["2.bias"], found["2.bias"])


def test_branches_add_up() -> None:
    class Residual(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            first, act, last = self
            x = first(x)
            result: Tensor = last(act(x) + x)
            return result

    x = noise_tensor((3, 4))
    model: Any = Residual(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    found: Any = run(
        copy.deepcopy(model), ours.DiagHessianHesScale(), x, use_converter=True
    )
    z = model(x).detach()
    h = diagonals.of_loss(nn.CrossEntropyLoss(), z, targets(3), elementwise=False)
    g = torch.func.grad(lambda z: nn.functional.cross_entropy(z, targets(3)))(z)
    pre, last = model[0](x).detach(), model[2].weight.detach()
    h, g = h @ last.square(), g @ last
    slope = 1 - pre.tanh().square()
    h = h + h * slope.square() - 2 * g * pre.tanh() * slope
    values = [value for key, value in found.items() if key.endswith("bias")]
    assert_close(values[0], h.sum(0))


def test_statistics_of_the_batch_are_refused() -> None:
    x = noise_tensor((4, 2, 3))
    model = classifier(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2), x=x).train()
    with pytest.raises(NotImplementedError):
        run(model, ours.DiagHessianHesScale(), x)
