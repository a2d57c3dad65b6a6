"""EKFAC against curvlinops where that is right, and against gradients elsewhere."""

from __future__ import annotations

import copy
from typing import Any

import curvlinops as stock
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from tests.backpack.run import images, targets
from tests.curvlinops.test_kfac import (
    APPROX,
    DAMPINGS,
    LOSSES,
    check_equals_stock,
    cnn,
    dense,
    grouped,
    operator,
)
from tests.curvlinops.test_stored import wide
from tests.messages import assert_in_form
from tests.strategies import BATCHES, examples, module_input, modules, noise_tensor
from tn_extensions import curvlinops as ours
from tn_extensions import memory_budget
from tn_extensions.curvlinops.stored import kept

EKFAC: dict[str, Any] = {"kind": "EKFACLinearOperator"}
EXACT = DAMPINGS[-1]


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("fisher", ["type-2", "mc", "empirical"])
@pytest.mark.parametrize("kind", LOSSES)
def test_equals_stock(
    kind: Any, fisher: str, separate: bool, reduction: str, approx: str
) -> None:
    # so many that reduced factors have no eigenvalue zero, whose eigenvectors are any
    x = images(5 if approx == "expand" else 30, 2, 8, 8)
    loss = kind(reduction=reduction)
    options = loss, fisher, separate, approx
    mine, theirs = check_equals_stock(x, *options, **EKFAC)
    inverse = stock.KFACInverseLinearOperator(theirs, **EXACT)
    assert_close(dense(mine.inverse(**EXACT)), dense(inverse), rtol=1e-9, atol=1e-9)


def per_sample_gradients(model: nn.Module, x: Tensor, g: Tensor) -> list[Tensor]:
    """``[N, *]`` of each parameter."""
    params = [*model.parameters()]
    rows = [
        torch.autograd.grad(model(datum[None])[0], params, vector)
        for datum, vector in zip(x, g, strict=True)
    ]
    return [torch.stack(part) for part in zip(*rows, strict=True)]


def matrices(module: Any, gradients: Tensor, group: int) -> Tensor:
    """Gradients of a group's kernel as ``[N, CO, CI * K]``."""
    own = gradients.chunk(module.groups, 1)[group]
    return (own.transpose(1, 2) if module.transposed else own).flatten(2)


@examples(60)
@given(case=st.data())
def test_every_convolution(case: st.DataObject) -> None:
    """Gradients have these second moments in an eigenbasis of KFAC's factors."""
    module, sizes = case.draw(modules())
    x = module_input(module, sizes, case.draw(BATCHES))
    is_joint = case.draw(st.booleans()) and module.bias is not None
    options = {
        "loss": nn.MSELoss(reduction="sum"),
        "fisher_type": "empirical",
        "kfac_approx": case.draw(st.sampled_from(APPROX)),
        "separate_weight_and_bias": not is_joint,
        "check_deterministic": False,
    }
    model = nn.Sequential(module, nn.Flatten()).double()
    with torch.no_grad():
        output = model(x)
    y = noise_tensor(output.shape)
    op = operator(ours, model, [(x, y)], **options, **EKFAC)
    with memory_budget(case.draw(st.sampled_from([1, 2**28]))):
        op.compute_eigenvalue_correction()
    kfac = operator(ours, model, [(x, y)], **options)
    kfac.compute_kronecker_factors()
    gradients = per_sample_gradients(model, x, 2 * (output - y))
    assert_close(op.trace, sum(g.square().sum() for g in gradients))
    for group in range(module.groups):
        left, right = (
            (basis["0"] if module.groups == 1 else basis["0"][group])
            for basis in (
                op._gradient_covariances_eigenvectors,
                op._input_covariances_eigenvectors,
            )
        )
        for basis, factors in (
            (left, kfac._gradient_covariances),
            (right, kfac._input_covariances),
        ):
            factor = factors["0"] if module.groups == 1 else factors["0"][group]
            assert_close(basis.T @ basis, torch.eye(basis.shape[1]).to(basis))
            rotated = basis.T @ factor @ basis
            assert_close(rotated, rotated.diagonal().diag())
            assert_close(rotated.trace(), factor.trace())
        weight, *others = gradients
        parts = {"weight": matrices(module, weight, group)}
        for bias in others:
            parts["bias"] = bias.chunk(module.groups, 1)[group].unsqueeze(2)
        if is_joint:
            parts = {"joint": torch.cat([*parts.values()], 2)}
        found = op._blocks_of("0")
        for key, part in parts.items():
            rotated = left.T @ part if key == "bias" else left.T @ part @ right
            assert_close(found[key].values[group], rotated.square().sum(0))


class Spatial(nn.Module):
    """A layer that is used twice, groups, and outputs at several positions."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv1d(4, 4, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose1d(4, 6, 2, stride=2, groups=2)
        self.last = nn.Conv1d(6, 3, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.tanh(self.twice(x)))
        return self.last(torch.tanh(self.up(x)))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("fisher", ["type-2", "mc"])
def test_trace_is_the_ggns(fisher: str, reduction: str) -> None:
    """A rotation keeps it, whatever the network; here, of several loss terms."""
    model, x = Spatial().double(), images(5, 4, 5)
    y = torch.arange(20).reshape(5, 4) % 3
    y[0, 0] = -100
    weight = torch.tensor([0.5, 2.0, 1.0]).double()
    loss = nn.CrossEntropyLoss(weight, reduction=reduction)
    # 40 samples of 100 copies of the data are as many as 4000 of each
    copies, samples = (100, 40) if fisher == "mc" else (1, 1)
    parts = [slice(5)] if reduction == "mean" else [slice(2), slice(2, 5)]
    data = [(x[own].repeat(copies, 1, 1), y[own].repeat(copies, 1)) for own in parts]
    options = {"loss": loss, "check_deterministic": False}
    exact = operator(stock, model, data, kind="GGNLinearOperator", **options)
    options |= {"fisher_type": fisher, "mc_samples": samples}
    for approx in APPROX if fisher == "type-2" else APPROX[:1]:
        op = operator(ours, model, data, kfac_approx=approx, **options, **EKFAC)
        loose = {"rtol": 0.05, "atol": 0} if fisher == "mc" else {}
        assert_close(op.trace, dense(exact).trace(), **loose)


@pytest.mark.parametrize("separate", [True, False])
def test_changes_in_place(separate: bool) -> None:
    """Of eigenvalues and vectors that are read, those of the null space included."""
    x, y = images(5, 4, 4, 3), targets(5)
    model = wide(x)
    options = {"separate_weight_and_bias": separate, "fisher_type": "type-2"}

    def fresh() -> Any:
        op = operator(ours, model, [(x, y)], **options, **EKFAC)
        op.compute_eigenvalue_correction()
        bases = kept(op._input_covariances_eigenvectors).values()
        assert any(basis.shape[1] > basis.shape[2] for basis in bases)
        return op

    op = fresh()
    matrix, inverse = dense(op), op.inverse(**EXACT)
    dense(inverse)
    identity = torch.eye(len(matrix)).to(matrix)
    op._reset_matrix_properties()
    for found in op._corrected_eigenvalues.values():
        for values in [found] if isinstance(found, Tensor) else found.values():
            values.add_(0.5)
    assert_close(dense(op), matrix + 0.5 * identity)
    assert_close(op.trace, matrix.trace() + 0.5 * len(matrix))
    assert_close(op.logdet, (matrix + 0.5 * identity).logdet())
    damped = matrix + (0.5 + EXACT["damping"]) * identity
    assert_close(dense(inverse), torch.linalg.inv(damped))
    with pytest.warns(UserWarning, match="overwrite"):
        loaded = ours.EKFACLinearOperator.from_state_dict(
            op.state_dict(), model, list(model.parameters()), [(x, y)]
        )
    assert torch.equal(dense(loaded), dense(op))

    op = fresh()
    for bases in (
        op._gradient_covariances_eigenvectors,
        op._input_covariances_eigenvectors,
    ):
        for basis in bases.values():
            assert_close(
                basis.mT @ basis, torch.eye(basis.shape[-1]).expand_as(basis).to(basis)
            )
    assert_close(dense(op), matrix)
    for basis in op._gradient_covariances_eigenvectors.values():
        basis.mul_(2)
    assert_close(dense(op), 4 * matrix)
    op.compute_eigenvalue_correction()
    assert_close(op.trace, 4 * matrix.trace())


def test_state_of_stock() -> None:
    x = images(5, 2, 8, 8)
    model, data = cnn(x), [(x, targets(5))]
    theirs = operator(stock, model, data, **EKFAC)
    matrix = dense(theirs)
    with pytest.warns(UserWarning, match="overwrite"):
        loaded = ours.EKFACLinearOperator.from_state_dict(
            theirs.state_dict(), model, list(model.parameters()), data
        )
    assert_close(dense(loaded), matrix)


TARGETS = {
    "probabilities": (
        nn.CrossEntropyLoss(torch.tensor([0.5, 2.0, 1.0]).double()),
        images(5, 3, 4).softmax(1),
    ),
    "binary": (
        nn.BCEWithLogitsLoss(
            weight=torch.rand(5, 1, 4).double(), pos_weight=torch.rand(3, 1).double()
        ),
        images(5, 3, 4).sigmoid(),
    ),
}


@pytest.mark.parametrize(("loss", "y"), TARGETS.values(), ids=TARGETS)
def test_outputs_at_positions(loss: nn.Module, y: Tensor) -> None:
    """EKFAC's trace and the GGN's diagonal and Gram matrix, by autograd's GGN."""
    model, x = Spatial().double(), images(5, 4, 5)
    args = model, [(x, y)]
    exact = dense(operator(stock, *args, kind="GGNLinearOperator", loss=loss))
    ekfac = operator(ours, *args, loss=loss, fisher_type="type-2", **EKFAC)
    assert_close(ekfac.trace, exact.trace())
    diagonal = operator(ours, *args, loss=loss, kind="GGNDiagonalLinearOperator")
    found = torch.cat([part.flatten() for part in diagonal.diagonal()])
    assert_close(found, exact.diagonal())
    gram = operator(ours, *args, loss=loss, kind="GGNGramLinearOperator").dense()
    assert_close(gram.square().sum(), exact.square().sum())


def test_groups_inverse_state_and_batches() -> None:
    x = images(6, 2, 5, 4)
    model, y = grouped(x), targets(6)
    options: dict[str, Any] = {"fisher_type": "type-2", **EKFAC}
    op = operator(ours, model, [(x, y)], **options)
    matrix = dense(op)
    assert_close(matrix, matrix.T)
    assert_close(op.trace, matrix.trace())
    assert_close(op.frobenius_norm, torch.linalg.norm(matrix))
    damped = matrix + 0.3 * torch.eye(len(matrix)).to(matrix)
    inverse = op.inverse(damping=0.3, use_exact_damping=True)
    assert_close(dense(inverse), torch.linalg.inv(damped))
    parts = [(x[:1], y[:1]), (x[1:], y[1:])]
    assert_close(dense(operator(ours, model, parts, **options)), matrix)
    with pytest.warns(UserWarning, match="overwrite"):
        loaded = ours.EKFACLinearOperator.from_state_dict(
            op.state_dict(), model, list(model.parameters()), [(x, y)]
        )
    assert torch.equal(dense(loaded), matrix)
    loaded.compute_kronecker_factors()
    assert_close(dense(loaded), matrix)
    v = noise_tensor([op.shape[1]]).numpy()
    assert_close(torch.from_numpy(op.to_scipy() @ v), matrix @ torch.from_numpy(v))


def test_inverse_follows_new_eigenvalues() -> None:
    x = images(5, 2, 5, 4)
    ekfac = operator(ours, grouped(x), [(x, targets(5))], **EKFAC)
    inverse = ekfac.inverse(**EXACT)
    before = dense(inverse)
    assert torch.equal(dense(inverse), before)
    x.mul_(2)
    ekfac.compute_kronecker_factors()
    expected = dense(ekfac.inverse(**EXACT))
    assert not torch.allclose(expected, before)
    assert_close(dense(inverse), expected, rtol=0, atol=0)


def test_frozen_weights() -> None:
    x = images(3, 2, 5, 4)
    model, data = grouped(x), [(x, targets(3))]
    full = dense(operator(ours, model, data, **EKFAC))
    model[0].weight.requires_grad_(False)
    params = [p for p in model.parameters() if p.requires_grad]
    op = ours.EKFACLinearOperator(model, nn.CrossEntropyLoss(), params, data)
    frozen = model[0].weight.numel()
    assert_close(dense(op), full[frozen:, frozen:])


def test_bad_input() -> None:
    x = images(3, 2, 5, 4)
    model, data = grouped(x), [(x, targets(3))]
    with pytest.raises(ValueError, match="fisher_type"):
        operator(ours, model, data, fisher_type="forward-only", **EKFAC)
    with pytest.raises(ValueError, match="data") as error:
        operator(ours, model, [], **EKFAC)
    assert_in_form(error.value, "EKFACLinearOperator", "data")
    op = operator(ours, model, data, **EKFAC)
    with pytest.raises(ValueError, match="exact damping"):
        op.inverse(damping=0.1)
    with pytest.raises(torch.linalg.LinAlgError, match="Increase the damping"):
        dense(op.inverse(use_exact_damping=True))


def test_a_failure_leaves_nothing() -> None:
    x = images(3, 2, 5, 4)
    model, y = grouped(x), targets(3)
    op = operator(ours, model, [(x, y)], fisher_type="empirical", **EKFAC)
    matrix = dense(op)
    op._data = [(x * torch.nan, y)]
    with pytest.raises(ValueError, match="layer '0'"):
        op.compute_eigenvalue_correction()
    with pytest.raises(ValueError, match="layer '0'"):
        dense(op)
    with pytest.raises(ValueError, match="layer '0'"):
        op.compute_kronecker_factors()
    assert not op._corrected_eigenvalues and not op._gradient_covariances
    assert all(not module._forward_hooks for module in model.modules())
    op._data = [(x, y)]
    assert_close(dense(op), matrix)


@pytest.mark.parametrize(
    ("kind", "fisher"),
    [
        ("KFACLinearOperator", "empirical"),
        ("KFACLinearOperator", "forward-only"),
        ("EKFACLinearOperator", "empirical"),
    ],
)
def test_half_precision_and_channels_last(kind: str, fisher: str) -> None:
    """Factors of halves are of float32; products are of the parameters' type."""
    x, y = images(4, 2, 6, 5), targets(4)
    model = grouped(x)
    options: dict[str, Any] = {"kind": kind, "fisher_type": fisher}
    options["check_deterministic"] = False
    expected = operator(ours, model, [(x, y)], **options)
    last = operator(
        ours, model, [(x.to(memory_format=torch.channels_last), y)], **options
    )
    assert_close(dense(last), dense(expected))
    half = copy.deepcopy(model).bfloat16()
    found = operator(ours, half, [(x.bfloat16(), y)], **options)
    v = torch.ones(found.shape[1], dtype=torch.bfloat16)
    product = found @ v
    assert product.dtype == torch.bfloat16
    kept = found._gradient_covariances or found._gradient_covariances_eigenvectors
    assert {factor.dtype for factor in kept.values()} == {torch.float32}
    assert_close(found.trace.double(), expected.trace, rtol=0.1, atol=0)
