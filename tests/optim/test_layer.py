"""Factors of a layer and their inverses."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.optim.support import (
    batch,
    gradients,
    joint,
    loss_of,
    matrix_of,
    network,
    preconditioned,
    train,
)
from tests.optim.test_preconditioner import APPROX
from tests.strategies import (
    with_stale_attributes,
)
from tn_extensions.kronecker.dense import DenseMatrix
from tn_extensions.kronecker.low_rank import LowRank
from tn_extensions.optim import KFACPreconditioner
from tn_extensions.optim import layer as layer_module


def test_corrected_eigenvalues() -> None:
    """After a step in a basis, eigenvalues are averages with moments in it."""
    model = network()
    found = KFACPreconditioner(
        model,
        eigenvalue_correction=True,
        inverse_update_steps=10,
        ema_decay=0.5,
        damping=0.1,
        kl_clip=None,
    )
    train(model, found, [0], lr=0.0)
    layer = found._layers["2"]
    first = layer.averages["moments"].clone()
    assert layer.bases is not None and layer.bases[1] is not None
    left, right = layer.bases
    rows = []
    other = network()
    for datum, label in zip(*batch(number=1), strict=True):
        loss = loss_of(other, (datum[None], label[None]))
        grads = torch.autograd.grad(loss, [other[2].weight, other[2].bias])
        rows.append(joint(other[2], *grads))
    per_sample = torch.stack(rows)
    moments = (left.mT @ per_sample @ right).square().mean(0)
    train(model, found, [1], lr=0.0)
    expected = 0.5 * first + 0.5 * moments
    assert_close(layer.averages["moments"], expected)
    model.zero_grad()
    loss_of(model, batch(number=1)).backward()
    before = joint(layer.module, *(p.grad for p in layer.parameters.values()))
    found.step()
    values = 0.5 * expected + 0.5 * moments
    wanted = left @ ((left.mT @ before @ right) / (values + 0.1)) @ right.mT
    after = joint(layer.module, *(p.grad for p in layer.parameters.values()))
    assert_close(after, wanted)


SOME = {"n": 0.5}


@pytest.mark.parametrize("fisher", ["empirical", "type-2"])
@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("is_corrected", [False, True])
def test_some_of_equal_data(fisher: str, approx: str, is_corrected: bool) -> None:
    """Whichever are kept, factors and moments are those of all."""
    options: dict[str, Any] = {
        "fisher": fisher,
        "approx": approx,
        "eigenvalue_correction": is_corrected,
        "damping": 0.1,
    }

    def equal(number: int) -> tuple[Tensor, Tensor]:
        x, y = batch(1, number)
        return x.expand(5, *x.shape[1:]), y.expand(5)

    model = network()
    expected = train(model, KFACPreconditioner(model, **options), range(3), data=equal)
    model = network()
    found = KFACPreconditioner(model, keep=SOME, **options)
    actual = train(model, found, range(3), data=equal)
    assert_close(actual, expected, rtol=1e-6, atol=1e-8)


def test_some_of_unlike_data() -> None:
    """Means over draws approach the factors of all data; a seed tells the draws."""
    options: dict[str, Any] = {
        "ema_decay": lambda step: step / (step + 1),
        "inverse_update_steps": 10**6,
        "overrides": {"5": {"keep": None}},
    }
    steps = [0] * 150
    first, second, whole = (
        KFACPreconditioner(network(), keep=keep, **options)
        for keep in (SOME, SOME, None)
    )
    for each, count in ((first, 150), (second, 150), (whole, 1)):
        train(each._observer._model, each, steps[:count], lr=0.0)
    for name, layer in whole._layers.items():
        for what, own in layer.averages.items():
            expected = matrix_of(own)
            a, b = (
                matrix_of(each._layers[name].averages[what]) for each in (first, second)
            )
            assert torch.equal(a, b)
            assert_close(a, expected, rtol=0, atol=0.15 * float(expected.max()))
            is_exact = bool((a - expected).abs().max() < 1e-9 * expected.max())
            assert is_exact == (name == "5")


@pytest.mark.parametrize("in_place", [8, 1000])
@pytest.mark.parametrize("fault", ["refused", "infinite"])
def test_nearly_singular_factors(
    fault: str,
    in_place: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More damping, which is logged, rather than a crash."""
    monkeypatch.setattr(layer_module, "IN_PLACE", in_place)
    tried: list[float] = []

    def failing(inverse: Any) -> Any:
        def tries(factor: Any, damping: Any) -> Any:
            tried.append(float(damping))
            if tried[-1] >= 1e-4:
                return inverse(factor, damping)
            if fault == "refused":
                raise torch.linalg.LinAlgError("not positive definite")
            return torch.full((1, 1, 1), torch.inf)

        return tries

    for owner, name in (
        (layer_module, "decompose"),
        (DenseMatrix, "inverse"),
        (LowRank, "inverse"),
    ):
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    model = network()
    found = KFACPreconditioner(
        model, damping=1e-9, damping_method="fixed", kl_clip=None
    )
    with caplog.at_level(logging.WARNING, logger="tn_extensions.optim"):
        loss_of(model, batch()).backward()
        found.step()
    assert min(tried) == 1e-9 and max(tried) >= 1e-4
    assert "Layer 0: damping" in caplog.text and "instead of 1e-09" in caplog.text
    assert all(g.isfinite().all() for g in gradients(model))


@pytest.mark.parametrize("in_place", [8, 1000])
def test_no_inverse(
    in_place: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former one stays, or its place was taken."""
    monkeypatch.setattr(layer_module, "IN_PLACE", in_place)
    model = network()
    found = KFACPreconditioner(model, kl_clip=None)
    train(model, found, range(2))
    layer = found._layers["0"]
    former = layer.inverse
    layer.averages["inputs"].diagonal(dim1=1, dim2=2).fill_(-1e30)
    train(model, found, [2])
    assert found.skipped == 0
    if in_place == 8:
        assert layer.inverse is None
        assert "Layer 0: not invertible, using no preconditioning" in caplog.text
    else:
        assert layer.inverse is former
        assert "Layer 0: not invertible, using the former inverse" in caplog.text


@pytest.mark.parametrize("fisher", ["empirical", "type-2"])
def test_kernels_that_were_exchanged(fisher: Any) -> None:
    _, wanted = preconditioned(network(), batch(), fisher=fisher)
    stale = with_stale_attributes(network())
    assert_close(preconditioned(stale, batch(), fisher=fisher)[1], wanted)
