"""kronfluence with our tracked convolutions, against gradients of single samples."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.module.conv2d import TrackedConv2d
from kronfluence.module.tracked_module import ModuleMode, TrackedModule
from kronfluence.task import Task
from kronfluence.utils.exceptions import FactorsNotFoundError
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

import tn_extensions.kronfluence as ours
from tests.reference import jacobian
from tests.strategies import BATCHES, examples, module_input, modules, noise_tensor
from tn_extensions import memory_budget
from tn_extensions.layers.module import kernel_matrices, transposed_groups

A, B = "activation_covariance", "gradient_covariance"


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    ours.register()
    yield
    ours.unregister()


def tracked(layer: nn.Module) -> ours.TrackedConvolution:
    arguments = FactorArguments(
        activation_covariance_dtype=torch.float64,
        gradient_covariance_dtype=torch.float64,
    )
    return ours.TrackedConvolution("layer", layer, factor_args=arguments)


def matrices(layer: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Arrange a gradient as kronfluence does, ``[C_out, D]``."""
    columns = kernel_matrices(weight[None], layer.groups, transposed_groups(layer))
    joined = columns.flatten(0, 2)
    return joined if bias is None else torch.cat([joined, bias[:, None]], 1)


def sample_gradients(layer: Any, x: Tensor, g: Tensor) -> Tensor:
    rows = []
    for one, own in zip(x, g, strict=True):
        found = torch.autograd.grad((layer(one[None]) * own).sum(), layer.parameters())
        by_name = dict(zip(dict(layer.named_parameters()), found, strict=True))
        rows.append(matrices(layer, by_name["weight"], by_name.get("bias")))
    return torch.stack(rows)


@examples(50)
@given(case=st.data(), budget=st.sampled_from([1, 2**28]))
def test_gradients_and_scores_of_every_convolution(
    case: st.DataObject, budget: int
) -> None:
    layer, sizes = case.draw(modules())
    x = module_input(layer, sizes, case.draw(BATCHES))
    with torch.no_grad():
        g = noise_tensor(layer(x).shape)
    module, each = tracked(layer), sample_gradients(layer, x, g)
    queries = noise_tensor((2, *each.shape[1:]))
    left, right = (
        noise_tensor((2, each.shape[1], 3)),
        noise_tensor((2, 3, each.shape[2])),
    )
    with memory_budget(budget), torch.no_grad():
        assert_close(module.compute_per_sample_gradient(x, g), each)
        assert_close(module.compute_summed_gradient(x, g), each.sum(0)[None])
        found = module.compute_pairwise_score(queries, x, g)
        assert_close(found, torch.einsum("qod,nod->qn", queries, each))
        found = module.compute_pairwise_score([left, right], x, g)
        assert_close(found, torch.einsum("qod,nod->qn", left @ right, each))
        found = module.compute_self_measurement_score(each.sin(), x, g)
        assert_close(found, (each.sin() * each).sum((1, 2)))


@examples(50)
@given(case=st.data())
def test_factors_of_every_convolution(case: st.DataObject) -> None:
    layer, sizes = case.draw(modules())
    module = tracked(layer)
    module.set_mode(ModuleMode.COVARIANCE)
    expected = {A: torch.zeros(()), B: torch.zeros(())}
    num_positions = 0
    for batch_size in (case.draw(BATCHES), 1):
        x = module_input(layer, sizes, batch_size)
        output = module(x)
        g = noise_tensor(output.shape)
        output.backward(g)
        patches = jacobian.patches(layer, x).mT
        if layer.bias is not None:
            patches = torch.cat([patches, torch.ones_like(patches[..., :1])], -1)
        moments = torch.einsum("ngoa,ngob->ab", patches, patches) / layer.groups
        expected[A] = expected[A] + moments
        own = g.flatten(2).unflatten(1, (layer.groups, -1))
        blocks = torch.einsum("ngap,ngbp->gab", own, own)
        expected[B] = expected[B] + torch.block_diag(*blocks)
        num_positions += patches.shape[0] * patches.shape[2]
    for name in (A, B):
        assert_close(module.storage[f"{name}"], expected[name])
        assert module.storage[f"num_{name}_processed"].item() == num_positions


BASES = ("activation_eigenvectors", "gradient_eigenvectors")


def fitting_moments(layer: nn.Module) -> ours.TrackedConvolution:
    arguments = FactorArguments(
        strategy="ekfac",
        per_sample_gradient_dtype=torch.float64,
        lambda_dtype=torch.float64,
    )
    module = ours.TrackedConvolution("layer", layer, factor_args=arguments)
    module.set_mode(ModuleMode.LAMBDA)
    module.gradient_scale = 0.5
    # kronfluence wants them, and uses them later
    module.storage["activation_eigenvalues"] = torch.ones(())
    module.storage["gradient_eigenvalues"] = torch.ones(())
    return module


@examples(50)
@given(case=st.data())
def test_moments_of_every_convolution(case: st.DataObject) -> None:
    layer, sizes = case.draw(modules())
    module, expected, num_samples = fitting_moments(layer), torch.zeros(()), 0
    for batch_size in (case.draw(BATCHES), 1):
        x = module_input(layer, sizes, batch_size)
        output = module(x)
        g = noise_tensor(output.shape)
        each = sample_gradients(layer, x, g / 2) if batch_size else None
        for name, dim in zip(BASES, (1, 0), strict=True):
            size = matrices(layer, layer.weight, layer.bias).shape[dim]
            basis = noise_tensor((size, size))
            module.storage[name] = basis
            if each is not None and dim == 1:
                each = each @ basis
            elif each is not None:
                each = basis.T @ each
        output.backward(g)
        if each is not None:
            expected = expected + each.square().sum(0)
        num_samples += batch_size
    assert_close(module.storage["lambda_matrix"], expected)
    assert module.storage["num_lambda_processed"].item() == num_samples


def test_moments_need_bases_and_a_layer_that_is_used_once() -> None:
    layer = nn.Conv2d(2, 2, 3, padding=1).double()
    module, x = fitting_moments(layer), noise_tensor((2, 2, 4, 4))
    with pytest.raises(FactorsNotFoundError, match="layer must have eigenvectors"):
        module(x).sum().backward()
    for name, size in zip(BASES, (19, 2), strict=True):
        module.storage[name] = torch.eye(size).double()
    with pytest.raises(RuntimeError, match="multiple times"):
        module(module(x)).sum().backward()


class Classification(Task):  # type: ignore[misc]
    """The sum of cross entropies."""

    def compute_train_loss(
        self, batch: Any, model: nn.Module, sample: bool = False
    ) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 2, padding="same", groups=2, padding_mode="circular"),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 2, 2, stride=2, groups=2),
        nn.Tanh(),
        nn.Flatten(),
    ).double()


def test_ekfac_scores_of_a_grouped_network(tmp_path: Path) -> None:
    model = network()
    model.append(nn.Conv1d(1, 3, 8, stride=100)).insert(5, nn.Unflatten(1, (1, -1)))
    model.append(nn.Flatten()).double()
    x, y = torch.randn(24, 2, 3, 3).double(), torch.arange(24) % 3
    data, queries, damping = TensorDataset(x, y), TensorDataset(x[:4], y[:4]), 1e-3
    plain, names = copy.deepcopy(model), [n for n, _ in model.named_parameters()]
    rows = []
    for n in range(24):
        loss = nn.functional.cross_entropy(plain(x[n : n + 1]), y[n : n + 1])
        grads = torch.autograd.grad(loss, plain.parameters())
        rows.append(torch.cat([g.flatten() for g in grads]))
    gradients = torch.stack(rows)

    model = prepare_model(model, Classification())
    analyzer = Analyzer(
        "test", model, Classification(), cpu=True, output_dir=str(tmp_path)
    )
    dtypes = {
        f"{name}_dtype": torch.float64
        for name in (
            "activation_covariance",
            "gradient_covariance",
            "eigendecomposition",
            "lambda",
            "per_sample_gradient",
        )
    }
    analyzer.fit_all_factors(
        "ekfac",
        data,
        per_device_batch_size=7,
        factor_args=FactorArguments(
            strategy="ekfac", use_empirical_fisher=True, **dtypes
        ),
    )
    analyzer.compute_pairwise_scores(
        "scores",
        "ekfac",
        query_dataset=queries,
        train_dataset=data,
        per_device_query_batch_size=3,
        per_device_train_batch_size=7,
        score_args=ScoreArguments(
            damping_factor=damping,
            score_dtype=torch.float64,
            per_sample_gradient_dtype=torch.float64,
            precondition_dtype=torch.float64,
        ),
    )
    found = analyzer.load_pairwise_scores("scores")["all_modules"]
    # the empirical Fisher's blocks, one a layer, of weight and bias
    exact, start = torch.zeros(4, 24, dtype=torch.float64), 0
    sizes = {n: p.numel() for n, p in plain.named_parameters()}
    for layer in dict.fromkeys(name.split(".")[0] for name in names):
        size = sum(s for n, s in sizes.items() if n.split(".")[0] == layer)
        own = gradients[:, start : start + size]
        start += size
        fisher = own.T @ own / 24 + damping * torch.eye(size).double()
        exact += own[:4] @ torch.linalg.solve(fisher, own.T)
    correlation = torch.corrcoef(torch.stack([found.flatten(), exact.flatten()]))[0, 1]
    assert correlation > 0.9


def test_gradients_of_groups_that_kronfluence_averages() -> None:
    layer = nn.Conv2d(4, 4, 3, groups=2).double()
    x = noise_tensor((2, 4, 5, 5))
    g = noise_tensor((2, 4, 3, 3))
    expected = sample_gradients(layer, x, g)
    theirs = TrackedConv2d("layer", layer).compute_per_sample_gradient(x, g)
    assert_close(tracked(layer).compute_per_sample_gradient(x, g), expected)
    assert (theirs - expected).norm() > 0.1 * expected.norm()


def test_gradients_that_somebody_processes() -> None:
    layer = nn.Conv2d(2, 3, 3).double()
    x, g = noise_tensor((2, 2, 5, 5)), noise_tensor((2, 3, 3, 3))
    expected = sample_gradients(layer, x, g)

    def halved(module_name: str, gradient: Tensor) -> Tensor:
        assert module_name == "layer"
        return gradient / 2

    module = tracked(layer)
    module.per_sample_gradient_process_fnc = halved
    assert_close(module.compute_per_sample_gradient(x, g), expected / 2)


def test_attributes_of_the_layer() -> None:
    module = tracked(nn.ConvTranspose3d(2, 4, 1, stride=2, groups=2))
    assert (module.in_channels, module.stride) == (2, (2, 2, 2))
    assert module.weight is module.original_module.weight
    with pytest.raises(AttributeError, match="nothing"):
        module.nothing  # noqa: B018


def test_unregister_restores_what_was_there() -> None:
    registry = TrackedModule.SUPPORTED_MODULES
    ours.register()
    assert registry[nn.Conv2d] is registry[nn.Conv1d] is ours.TrackedConvolution
    ours.unregister()
    try:
        assert registry[nn.Conv2d] is TrackedConv2d
        assert nn.Conv1d not in registry
    finally:
        ours.register()
