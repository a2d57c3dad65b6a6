"""Modules and losses that extensions of first order take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from backpack import backpack, extend
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from tests.backpack.run import classifier, images, targets
from tests.backpack.suite import (
    FIRST_ORDER,
    SUITE,
    assert_equal,
    expected,
    names_with,
)
from tests.backpack.test_backward import small
from tests.backpack.test_extension import backward
from tests.backpack.test_kronecker_modules import Standardized
from tests.reference import per_sample
from tn_extensions import backpack as ours


class Shared(nn.Module):
    """A network whose modules without parameters are used over and over."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 2, 2, padding=1)
        self.last = nn.Linear(2, 3)
        self.pool, self.act, self.flatten = nn.MaxPool2d(2), nn.Tanh(), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.first(x)))
        x = self.pool(self.act(self.second(x)))
        return self.last(self.flatten(x))


@pytest.mark.parametrize("name", list(FIRST_ORDER))
def test_modules_without_parameters_used_twice(name: str) -> None:
    model, x = Shared().double(), images(3, 2, 4, 4)
    extension = SUITE[name](ours)
    gradients = per_sample.gradients(
        model, x, lambda z: nn.functional.cross_entropy(z, targets(len(z)))
    )
    backward(model, extension, x=x)
    made = {
        "BatchGrad": lambda g: g,
        "BatchL2Grad": lambda g: g.flatten(1).square().sum(1),
        "SumGradSquared": lambda g: g.square().sum(0),
        "Variance": lambda g: g.var(0, correction=0),
        "BatchDotGrad": lambda g: g.flatten(1) @ g.flatten(1).T,
    }[name]
    wanted = {key: made(g) for key, g in gradients.items()}
    assert_equal(names_with(model, extension.savefield), wanted)


class Centred(nn.Conv1d):
    """Weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class LowRank(nn.Linear):
    """An adapter inside of a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.sum(-1, keepdim=True)


def masked(layer: nn.Module, name: str = "weight") -> nn.Module:
    """Pruned by the mask of torch.nn.utils.prune."""
    return prune.l1_unstructured(layer, name, 0.5)


def with_own_method(layer: Any) -> nn.Module:
    """Set a method on the module, as some hooks of other packages do."""
    plain = layer.forward
    layer.forward = lambda x: 2 * plain(x)
    return layer


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "own forward": lambda: Centred(2, 2, 2),
    "own method": lambda: with_own_method(nn.Conv1d(2, 2, 2)),
    "weight_norm": lambda: weight_norm(nn.Conv1d(2, 2, 2)),
    "spectral_norm": lambda: spectral_norm(nn.ConvTranspose1d(2, 2, 2)),
    "prune": lambda: masked(nn.Conv1d(2, 2, 2)),
    "prune bias": lambda: masked(nn.Conv1d(2, 2, 2), "bias"),
    "parametrized": lambda: parametrizations.weight_norm(nn.Conv1d(2, 2, 2)),
    "linear": lambda: nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(8, 2))),
    "linear, own forward": lambda: nn.Sequential(nn.Flatten(), LowRank(8, 2)),
}


def chain(module: nn.Module) -> list[nn.Module]:
    """Modules of a sequence, or the module itself."""
    return list(module) if isinstance(module, nn.Sequential) else [module]


@pytest.mark.parametrize("case", list(COMPUTED))
@pytest.mark.parametrize("name", list(FIRST_ORDER))
def test_computed_kernels_of_first_order(name: str, case: str) -> None:
    """A warning, as BackPACK's of a module that it does not know; others are saved."""
    x = images(2, 1, 5)
    model = classifier(nn.Conv1d(1, 2, 2), nn.ReLU(), *chain(COMPUTED[case]()), x=x)
    extension = SUITE[name](ours)
    with pytest.warns(UserWarning, match="must multiply by its parameters") as caught:
        backward(model, extension, x=x)
    (line,) = {str(w.message) for w in caught if "multiply" in str(w.message)}
    assert line.startswith(f"{name}: ") and "\n" not in line
    found = names_with(model, extension.savefield)
    ends = (0, len(model) - 1)
    assert set(found) == {f"{i}.{key}" for i in ends for key in ("weight", "bias")}
    for layer in model[1:-1]:  # nor on a result that is no parameter
        assert not hasattr(getattr(layer, "weight", None), extension.savefield)


@pytest.mark.parametrize("name", list(FIRST_ORDER))
def test_unknown_module_of_first_order(name: str) -> None:
    """As in BackPACK, a warning."""
    x = images(2, 2, 4, 4)
    model = classifier(nn.Conv2d(2, 2, 2), Standardized(2, 2, 2), x=x)
    wanted = expected(name, model, x)
    with pytest.warns(UserWarning, match="Standardized"):
        criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
        extension = SUITE[name](ours)
        with backpack(extension):
            criterion(model(x), targets(len(x))).backward()
    actual = names_with(model, extension.savefield)
    assert_equal(actual, {k: v for k, v in wanted.items() if not k.startswith("1.")})


@pytest.mark.parametrize("name", list(FIRST_ORDER))
def test_first_order_takes_a_loss_without_reduction(name: str) -> None:
    model, x = small()
    wanted = expected(name, model, x, nn.CrossEntropyLoss(reduction="sum"))
    criterion, model = extend(nn.CrossEntropyLoss(reduction="none")), extend(model)
    extension = SUITE[name](ours)
    with backpack(extension):
        criterion(model(x), targets(len(x))).sum().backward()
    assert_equal(names_with(model, extension.savefield), wanted)
