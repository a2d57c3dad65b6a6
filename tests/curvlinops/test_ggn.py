"""The GGN's diagonal and Gram matrix against curvlinops' GGN, by autodiff."""

from __future__ import annotations

from typing import Any

import curvlinops as stock
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from tests.backpack.run import images, targets
from tests.curvlinops.test_ekfac import Spatial
from tests.curvlinops.test_kfac import LOSSES, cnn, dense, grouped, operator
from tests.messages import assert_in_form
from tests.strategies import BATCHES, examples, module_input, modules, noise_tensor
from tn_extensions import curvlinops as ours
from tn_extensions import memory_budget

DIAGONAL: dict[str, Any] = {"kind": "GGNDiagonalLinearOperator"}
GRAM: dict[str, Any] = {"kind": "GGNGramLinearOperator"}


def ggn(model: nn.Module, data: Any, loss: nn.Module) -> Tensor:
    options = {"loss": loss, "check_deterministic": False}
    return dense(operator(stock, model, data, kind="GGNLinearOperator", **options))


def assert_same_spectrum(gram: Tensor, matrix: Tensor) -> None:
    """Nonzero eigenvalues agree."""
    found, expected = (torch.linalg.eigvalsh(m).flip(0) for m in (gram, matrix))
    size = max(len(found), len(expected))
    padded = (nn.functional.pad(v, (0, size - len(v))) for v in (found, expected))
    assert_close(*padded, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("budget", [1, 2**28])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("network", [cnn, grouped])
def test_equal_the_ggns(network: Any, kind: Any, reduction: str, budget: int) -> None:
    x = images(4, 2, 5, 4)
    y = targets(4) if kind is nn.CrossEntropyLoss else (images(4, 3) > 0).double()
    data = [(x[:1], y[:1]), (x[1:], y[1:])]
    model, loss = network(x), kind(reduction=reduction)
    matrix = ggn(model, data, loss)
    with memory_budget(budget):
        op = operator(ours, model, data, loss=loss, **DIAGONAL)
        gram = operator(ours, model, data, loss=loss, **GRAM)
        by_products, found = dense(gram), gram.dense()
    flat = torch.cat([d.flatten() for d in op.diagonal()])
    assert_close(flat, matrix.diagonal(), rtol=1e-10, atol=1e-12)
    assert [d.shape for d in op.diagonal()] == [p.shape for p in model.parameters()]
    assert_close(dense(op), flat.diag())
    assert_close(op.trace, matrix.trace())
    assert_close(op.det, flat.prod())
    assert_close(op.logdet, flat.log().sum())
    assert_close(op.frobenius_norm, flat.norm())
    assert gram.shape == (12, 12)
    assert_close(by_products, found)
    assert_close(dense(gram), found)
    assert_same_spectrum(found, matrix)


def test_several_uses_loss_terms_and_sizes() -> None:
    model, loss = Spatial().double(), nn.CrossEntropyLoss(torch.rand(3).double())
    x, y = images(4, 4, 5), torch.arange(16).reshape(4, 4) % 3
    data = [(x[:1], y[:1]), (x[1:], y[1:])]
    # classes have weights, that torch's mean divides by in each batch
    loss.reduction = "sum"
    matrix = ggn(model, data, loss)
    op = operator(ours, model, data, loss=loss, **DIAGONAL)
    assert_close(torch.cat([d.flatten() for d in op.diagonal()]), matrix.diagonal())
    gram = operator(ours, model, data, loss=loss, **GRAM)
    assert gram.shape == (48, 48)
    assert_close(dense(gram), gram.dense())
    assert_same_spectrum(gram.dense(), matrix)
    mixed = nn.Sequential(nn.Conv1d(4, 3, 3, padding=1), nn.AdaptiveAvgPool1d(1))
    mixed = nn.Sequential(mixed, nn.Flatten()).double()
    data = [(x[:1], y[:1, 0]), (images(3, 4, 7), y[1:, 0])]
    found = operator(ours, mixed, data, **GRAM).dense()
    assert_same_spectrum(found, ggn(mixed, data, nn.CrossEntropyLoss()))


@examples(60)
@given(case=st.data())
def test_every_convolution(case: st.DataObject) -> None:
    module, sizes = case.draw(modules())
    x = module_input(module, sizes, case.draw(BATCHES))
    model = nn.Sequential(module, nn.Flatten(), nn.LazyLinear(2)).double()
    with torch.no_grad():
        y = noise_tensor(model(x).shape)
    loss, data = nn.MSELoss(), [(x, y)]
    matrix = ggn(model, data, loss)
    options = {"loss": loss, "check_deterministic": False}
    op = operator(ours, model, data, **options, **DIAGONAL)
    assert_close(torch.cat([d.flatten() for d in op.diagonal()]), matrix.diagonal())
    gram = operator(ours, model, data, **options, **GRAM).dense()
    assert_close(gram.trace(), matrix.trace())
    assert_close(gram.square().sum(), matrix.square().sum())


def test_monte_carlo() -> None:
    x = images(3, 2, 5, 4)
    model, data = grouped(x), [(x, targets(3))]
    # 30 samples of 100 copies of the data are as many as 3000 of each
    options: dict[str, Any] = {"mode": "mc", "mc_samples": 30}
    copies = [(x.repeat(100, 1, 1, 1), targets(3).repeat(100))]
    op = operator(ours, model, copies, **options, **DIAGONAL)
    expected = ggn(model, data, nn.CrossEntropyLoss()).diagonal()
    found = torch.cat([d.flatten() for d in op.diagonal()])
    assert_close(found, expected, rtol=0.2, atol=0.02 * float(expected.max()))
    options |= {"mc_samples": 2, "seed": 3}
    grams = [operator(ours, model, data, **options, **GRAM) for _ in range(2)]
    assert grams[0].shape == (6, 6)
    assert torch.equal(grams[0].dense(), grams[1].dense())
    again = operator(ours, model, data, **options, **GRAM)
    assert_close(dense(again), grams[0].dense())
    diagonal = operator(ours, model, data, **options, **DIAGONAL)
    assert_close(diagonal.trace, grams[0].dense().trace())


def test_bad_input() -> None:
    x = images(3, 2, 5, 4)
    model, data = grouped(x), [(x, targets(3))]
    for kind in (DIAGONAL, GRAM):
        name = kind["kind"]
        with pytest.raises(ValueError, match="mode") as error:
            operator(ours, model, data, mode="both", **kind)
        assert_in_form(error.value, name, "mode")
        for number in ({"mc_samples": 2}, {"mode": "mc", "mc_samples": 0}):
            with pytest.raises(ValueError, match="positive") as error:
                operator(ours, model, data, **number, **kind)
            assert_in_form(error.value, name, "mc_samples")
        with pytest.raises(ValueError, match="data") as error:
            operator(ours, model, [], **kind)
        assert_in_form(error.value, name, "data")
        norm = nn.Sequential(nn.BatchNorm2d(2), model)
        with pytest.raises(NotImplementedError, match=r"0\.weight, 0\.bias"):
            operator(ours, norm, data, **kind)
        op = operator(ours, model, data, **kind, check_deterministic=False)
        op._data = [(x * torch.nan, targets(3))]
        with pytest.raises(ValueError, match="layer '0' must be finite"):
            op.dense() if kind is GRAM else op.diagonal()
        op._data = data
        assert (op.dense() if kind is GRAM else op.trace).isfinite().all()
