"""Models that stock refuses: BatchNorm, adaptive pooling, branches, subclasses."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backpack import backpack, extend
from backpack.custom_module.branching import Parallel
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.backpack.run import (
    APPROX,
    NAMES,
    assert_as_reference,
    assert_same,
    classifier,
    extension,
    images,
    run,
    run_copy,
    targets,
)
from tests.strategies import noise_tensor, with_stale_attributes
from tn_extensions import backpack as ours
from tn_extensions import memory_budget


def with_statistics(model: nn.Module) -> nn.Module:
    """Give BatchNorms parameters and running statistics that matter."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    tensor.data = 0.5 + noise_tensor(tensor.shape).abs()
    return model


def batch_norm_chain(training: bool) -> tuple[nn.Module, Tensor]:
    """Convolutions of all sorts with BatchNorm and adaptive pooling in between."""
    x = images(3, 2, 6, 5)
    model = classifier(
        nn.Conv2d(2, 4, 3, padding="same", groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d((3, 4)),
        nn.Conv2d(4, 3, 2, padding_mode="reflect", padding=1),
        nn.BatchNorm2d(3),
        nn.Sigmoid(),
        nn.ConvTranspose2d(3, 2, 2, stride=2, output_padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(2),
        x=x,
    )
    return with_statistics(model).train(training), x


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_and_adaptive_pooling(
    name: str, approx: str, training: bool
) -> None:
    model, x = batch_norm_chain(training)
    assert_as_reference(name, model, x, approx)


@pytest.mark.parametrize("name", ["KFLR", "DiagGGNExact", "BatchGrad"])
def test_kernels_that_were_exchanged(name: str) -> None:
    model, x = batch_norm_chain(training=False)
    wanted = run_copy(model, getattr(ours, name)(), x)
    found = run_copy(with_stale_attributes(model), getattr(ours, name)(), x)
    assert_same(found, wanted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_dims", [1, 3])
def test_other_dimensions(name: str, num_dims: int) -> None:
    i = num_dims - 1
    x = images(2, 2, *(5, 3, 4)[:num_dims])
    model = classifier(
        (nn.Conv1d, nn.Conv2d, nn.Conv3d)[i](2, 2, 2),
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[i](2),
        (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[i](2, stride=1),
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[i](2, 2, 2),
        (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[i](2),
        (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[i](1),
        x=x,
    )
    assert_as_reference(name, with_statistics(model), x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "between",
    [
        nn.LeakyReLU(0.2),
        nn.ELU(0.5),
        nn.SELU(),
        nn.LogSigmoid(),
        nn.Identity(),
        nn.AdaptiveMaxPool2d((2, 3)),
        nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
    ],
    ids=str,
)
def test_modules_that_stock_lacks(name: str, between: nn.Module) -> None:
    x = images(2, 2, 5, 5)
    model = classifier(nn.Conv2d(2, 2, 2), between, nn.Conv2d(2, 2, 2), x=x)
    assert_as_reference(name, model, x)


def test_samples_are_unbiased_where_batch_norm_couples_them() -> None:
    """Their mean is the exact factor, which KFLR has."""
    x = images(3, 2, 3, 3)
    model = classifier(nn.Conv2d(2, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), x=x)
    exact = run_copy(model, ours.KFLR(), x)["0.weight"]
    sampled = run_copy(model, ours.KFAC(mc_samples=40_000), x)["0.weight"]
    for mean, wanted in zip(sampled, exact, strict=True):
        assert (mean - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("name", NAMES)
def test_frozen_and_absent_parameters_of_batch_norm(name: str) -> None:
    x = images(3, 2, 4, 4)
    frozen = nn.BatchNorm2d(2)
    frozen.bias.requires_grad_(False)
    absent = nn.BatchNorm2d(2, affine=False)
    model = classifier(nn.Conv2d(2, 2, 2), frozen, nn.Tanh(), absent, x=x)
    whole = copy.deepcopy(model).requires_grad_()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", f"{name}: ")
        found = run_copy(with_statistics(model), extension(ours, name), x)
    wanted = run_copy(with_statistics(whole), extension(ours, name), x)
    assert wanted.pop("1.bias")
    assert_same(found, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_scale_and_shift_in_pieces(name: str) -> None:
    model, x = batch_norm_chain(training=False)
    wanted = run_copy(model, extension(ours, name), x)
    with memory_budget(1):
        assert_same(run_copy(model, extension(ours, name), x), wanted)


def test_diagonal_of_scale_and_shift() -> None:
    """It is what BackPACK's diagonal of the GGN has."""
    model, x = batch_norm_chain(training=False)
    factors = run_copy(model, ours.KFLR(), x)
    diagonal = run_copy(model, ours.DiagGGNExact(), x)
    for norm in ("1", "5", "10"):
        for parameter in ("weight", "bias"):
            (factor,) = factors[f"{norm}.{parameter}"]
            wanted = diagonal[f"{norm}.{parameter}"]
            torch.testing.assert_close(factor.diagonal(), wanted)


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("name", NAMES)
def test_scale_and_shift_are_those_of_a_depthwise_convolution(
    name: str, approx: str
) -> None:
    """Where one sample and one position leave nothing to approximate."""
    x = images(1, 4, 1, 1)
    norm = with_statistics(nn.BatchNorm2d(4).double())
    depthwise = nn.Conv2d(4, 4, 1, groups=4).double()
    normalized = nn.BatchNorm2d(4, affine=False).double()
    normalized.load_state_dict(norm.state_dict(), strict=False)
    with torch.no_grad():
        depthwise.weight.copy_(norm.weight.view(-1, 1, 1, 1))
        depthwise.bias.copy_(norm.bias)
    model = classifier(norm, nn.Tanh(), x=x).eval()
    other = classifier(normalized, depthwise, nn.Tanh(), x=x).eval()
    other[-1].load_state_dict(model[-1].state_dict())
    own = extension(ours, name, approx=approx)
    found, pairs = run_copy(model, own, x), run_copy(other, own, x)
    (scale,), (shift,) = found["0.weight"], found["0.bias"]
    left, right = pairs["1.weight"]
    torch.testing.assert_close(scale.diagonal(), (left * right).flatten())
    torch.testing.assert_close(shift.diagonal(), pairs["1.bias"][0].flatten())


class Residual(nn.Module):
    """A block of a residual network."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 2, padding="same", groups=groups)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y = y + x
        return self.relu2(y)


class ResNet(nn.Module):
    """A residual network, written as people do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 2)
        self.blocks = nn.Sequential(Residual(4, 1), Residual(4, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["KFAC", "KFLR"])
def test_residual_network(name: str, training: bool) -> None:
    x = images(2, 2, 4, 4)
    model = with_statistics(ResNet().double()).train(training)
    assert_as_reference(name, model, x, use_converter=True)


@pytest.mark.parametrize("name", ["KFAC", "KFLR"])
def test_one_branch_couples_samples(name: str) -> None:
    x = images(3, 2, 4, 4)
    branches = Parallel(
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Tanh()),
        nn.Conv2d(2, 2, 1),
        nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)),
    )
    model = classifier(nn.Conv2d(2, 2, 2), nn.Tanh(), branches, nn.Tanh(), x=x)
    assert_as_reference(name, with_statistics(model), x)


def test_branches_are_refused_by_kfra() -> None:
    x = images(2, 2, 4, 4)
    model = with_statistics(ResNet().double())
    with pytest.raises(NotImplementedError) as caught:
        run_copy(model, ours.KFRA(), x, use_converter=True)
    assert_refused(caught.value)
    with pytest.raises(NotImplementedError) as caught:
        ours.KFRA().accumulate_backpropagated_quantities(x, x)
    assert_refused(caught.value)


def assert_refused(error: BaseException) -> None:
    """Check that the message lists what is supported."""
    message = str(error)
    assert message.startswith("KFRA: model must be a chain of modules, got ")
    assert message.endswith("KFAC, KFLR.")


class Scaled(nn.Conv2d):
    """Computes what its base computes."""

    scale = 1.0


class Standardized(nn.Conv2d):
    """Computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Doubled(nn.Conv2d):
    """Computes something else, further down."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        return super()._conv_forward(x, 2 * weight, bias)


class Decoder(nn.ConvTranspose1d):
    """Computes what its base computes."""


@pytest.mark.parametrize("name", NAMES)
def test_subclasses_count_as_their_bases(name: str) -> None:
    x = images(2, 2, 4, 4)
    model = classifier(Scaled(2, 4, 2, groups=2), nn.ReLU(), Scaled(4, 2, 2), x=x)
    own = extension(ours, name)
    found = run_copy(model, own, x)
    base = copy.deepcopy(model)
    for i in (0, 2):
        base[i].__class__ = nn.Conv2d
    assert_same(found, run_copy(base, extension(ours, name), x))
    assert_as_reference(name, model, x)

    x = images(2, 2, 4)
    assert_as_reference(name, classifier(Decoder(2, 3, 2, stride=2), x=x), x)


def parametrized() -> nn.Module:
    """Make a convolution whose weight is computed from its parameter."""
    module = nn.Conv2d(2, 3, 2)
    parametrize.register_parametrization(module, "weight", nn.Identity())
    return module


@pytest.mark.parametrize(
    "make", [lambda: Standardized(2, 3, 2), lambda: Doubled(2, 3, 2), parametrized]
)
@pytest.mark.parametrize("name", NAMES)
def test_subclasses_that_compute_something_else_are_refused(
    name: str, make: Callable[[], nn.Module]
) -> None:
    x = images(2, 2, 4, 4)
    with pytest.raises(NotImplementedError, match="does not have an extension"):
        run_copy(classifier(make(), x=x), extension(ours, name), x)


@pytest.mark.parametrize("name", NAMES)
def test_extension_hook(name: str) -> None:
    """Factors are there when the hook runs, and may be dropped by it."""
    model, x = batch_norm_chain(training=True)
    wanted = run_copy(model, extension(ours, name), x)
    seen: dict[int, list[Tensor]] = {}

    def compress(module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            if hasattr(parameter, name.lower()):
                seen[id(parameter)] = getattr(parameter, name.lower())
                delattr(parameter, name.lower())

    assert run(model, extension(ours, name), x, hook=compress) == {}
    by_name = {key: seen.get(id(p)) for key, p in model.named_parameters()}
    assert_same({k: v for k, v in by_name.items() if v is not None}, wanted)


@pytest.mark.parametrize("name", ["KFAC", "KFRA"])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_two_extensions_and_two_backward_passes(name: str) -> None:
    model, x = batch_norm_chain(training=False)
    both = [ours.KFLR(), extension(ours, name)]
    wanted = {own.savefield: run_copy(model, own, x) for own in both}
    criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
    with backpack(*both, retain_graph=True):
        loss = criterion(model(x), targets(len(x)))
        for _ in range(2):
            torch.manual_seed(1)
            loss.backward(retain_graph=True)
    for field, factors in wanted.items():
        actual = {
            key: getattr(parameter, field)
            for key, parameter in model.named_parameters()
            if hasattr(parameter, field)
        }
        assert_same(actual, factors)
