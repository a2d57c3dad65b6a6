"""Operators of curvlinops' next line; what they are made of is tested without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import curvlinops as stock
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from tests.backpack.run import classifier, images, targets
from tests.messages import assert_in_form
from tn_extensions import curvlinops as ours
from tn_extensions.curvlinops.release import LINE

if LINE != "next":
    pytest.skip("another release line of curvlinops", allow_module_level=True)

KINDS = ["KFACLinearOperator", "EKFACLinearOperator"]


def cnn(x: Tensor) -> nn.Sequential:
    layers = nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(inplace=True)
    return classifier(*layers, nn.Conv2d(3, 4, (1, 3), bias=False), x=x)


def grouped(x: Tensor) -> nn.Sequential:
    return classifier(
        nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular", groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3, stride=2, groups=6),
        x=x,
    )


def operator(module: Any, model: Any, x: Tensor, **options: Any) -> Any:
    y = targets(len(x))
    data = [(x[:2], y[:2]), (x[2:], y[2:])]
    kind = options.pop("kind", "KFACLinearOperator")
    params = options.pop("params", None) or dict(model.named_parameters())
    loss = options.pop("loss", nn.CrossEntropyLoss())
    return getattr(module, kind)(model, loss, params, data, **options)


def dense(op: Any) -> Tensor:
    return op @ torch.eye(op.shape[1], dtype=torch.float64)


@pytest.mark.parametrize("backend", ["tn", None])
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["type-2", "empirical", "forward-only"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_stock(
    kind: str, fisher: str, approx: str, separate: bool, backend: str | None
) -> None:
    """Ours, and stock's operator with our computer."""
    if fisher == "forward-only" and kind == "EKFACLinearOperator":
        pytest.skip("EKFAC has none")
    x = images(5, 2, 8, 7)
    model = cnn(x)
    options: dict[str, Any] = {"kind": kind, "fisher_type": fisher}
    options |= {"kfac_approx": approx, "separate_weight_and_bias": separate}
    theirs = operator(stock, model, x, **options)
    if backend is None:
        mine = operator(ours, model, x, **options)
        assert isinstance(mine, getattr(stock, kind))
    else:
        mine = operator(stock, model, x, backend=backend, **options)
    tight = {"rtol": 1e-10, "atol": 1e-12}
    assert_close(mine.trace(), theirs.trace(), **tight)
    if kind == "EKFACLinearOperator" and approx == "reduce":
        return  # a factor of few data leaves eigenvectors of zero to rounding
    assert_close(dense(mine), dense(theirs), **tight)
    assert_close(mine.frobenius_norm(), theirs.frobenius_norm(), **tight)
    dampings: list[dict[str, Any]] = [{"damping": 0.1}]
    if kind == "KFACLinearOperator":
        dampings += [
            {"damping": 0.1, "use_heuristic_damping": True, "min_damping": 0.05},
            {"damping": 0.1, "use_exact_damping": True},
        ]
    for damping in dampings:
        inverse = mine.inverse(**damping)
        wanted = dense(theirs.inverse(**damping))
        assert_close(dense(inverse), wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_groups_and_transposed(kind: str, separate: bool) -> None:
    """Blocks of groups of channels, in the order of the parameters."""
    x = images(4, 2, 5, 4)
    options: dict[str, Any] = {"kind": kind, "separate_weight_and_bias": separate}
    op = operator(ours, grouped(x), x, fisher_type="type-2", **options)
    matrix = dense(op)
    assert_close(matrix, matrix.T)
    assert_close(op.trace(), matrix.trace())
    assert_close(op.frobenius_norm(), torch.linalg.norm(matrix))
    exact = {} if kind == "EKFACLinearOperator" else {"use_exact_damping": True}
    damped = matrix + 0.3 * torch.eye(len(matrix), dtype=matrix.dtype)
    inverse = dense(op.inverse(damping=0.3, **exact))
    assert_close(inverse, torch.linalg.inv(damped))
    # a bias of the transposed layer, and what it is joined with, is where it belongs
    weight, bias = 4 * 1 * 9 + 4, 4 * 1 * 9 + 4 + 4 * 3 * 9
    of_bias = matrix[bias : bias + 6, weight:bias].view(2, 3, 4, 3, 9)
    assert bool(of_bias.any()) == (not separate)
    for group in range(2):
        others = of_bias[group][:, [2, 3] if group == 0 else [0, 1]]
        assert not others.any()


def test_exact_where_theory_says_so() -> None:
    """One datum, one position: transposed and grouped, each block is the GGN's."""
    for layer in (nn.ConvTranspose2d(4, 6, 1, groups=2), nn.Conv2d(4, 6, 1, groups=2)):
        x = images(1, 4, 1, 1)
        model = nn.Sequential(layer, nn.Flatten()).double()
        arguments = model, nn.CrossEntropyLoss(), dict(model.named_parameters())
        data = [(x, targets(1))]
        options: dict[str, Any] = {"fisher_type": "type-2"}
        found = dense(ours.KFACLinearOperator(*arguments, data, **options))
        exact = dense(stock.GGNLinearOperator(*arguments, data))
        kept = found != 0
        assert_close(found[kept], exact[kept])
        assert_close(found.diagonal(), exact.diagonal())


def test_functions_and_other_parameters() -> None:
    """A model that is a function, at parameters that are not those of the module."""
    x = images(5, 2, 8, 7)
    model = cnn(x)

    def function(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.as_tensor(functional_call(model, params, (x,)))

    params = {name: 1.1 * p.detach() for name, p in model.named_parameters()}
    options: dict[str, Any] = {"params": params, "fisher_type": "type-2"}
    found = dense(operator(ours, function, x, **options))
    expected = dense(operator(stock, function, x, backend="make_fx", **options))
    assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert_close(dense(operator(ours, model, x, **options)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_can_be_replaced(kind: str) -> None:
    x = images(5, 2, 8, 7)
    op = operator(ours, cnn(x), x, kind=kind)
    for block in op[1]:
        if kind == "EKFACLinearOperator":
            block.eigenvalues = torch.ones_like(block.eigenvalues)
        else:
            for index, factor in enumerate(block):
                block[index] = torch.eye(len(factor), dtype=factor.dtype)
    assert_close(dense(op), torch.eye(op.shape[0]).double())
    if kind == "KFACLinearOperator":
        with pytest.raises(ValueError, match="a factor must have shape") as error:
            op[1][0][0] = torch.eye(2)
        assert_in_form(error.value, "KroneckerOperator", "a factor")
        factors = [factor.requires_grad_() for block in op[1] for factor in block]
        gradients = torch.autograd.grad(op.trace() + dense(op).sum(), factors)
        assert all(gradient.any() for gradient in gradients)


def test_closest_products() -> None:
    x, y = images(4, 2, 4, 4), targets(4)
    model = classifier(nn.Conv2d(2, 3, 3), nn.Tanh(), x=x)
    arguments = model, nn.CrossEntropyLoss(), dict(model.named_parameters()), [(x, y)]
    for separate in (True, False):
        options: dict[str, Any] = {"separate_weight_and_bias": separate}
        options["fisher_type"] = "type-2"
        theirs = dense(stock.KFOCLinearOperator(*arguments, **options))
        options |= {"tolerance": 1e-12, "max_sweeps": 2000}
        mine = dense(ours.KFOCLinearOperator(*arguments, **options))
        assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_whole_and_printed(kind: str, tmp_path: Path) -> None:
    x = images(4, 2, 5, 4)
    op = operator(ours, grouped(x), x, kind=kind)
    torch.save(op, tmp_path / "operator.pt")
    loaded = torch.load(tmp_path / "operator.pt", weights_only=False)
    assert_close(dense(loaded), dense(op))
    assert repr(loaded) == repr(op)
    first, *others = repr(op).splitlines()
    assert "backend='tn', groups='separate', fisher_type='mc'" in first
    names = ("A", "B") if kind == "KFACLinearOperator" else ("Q_A", "Q_B")
    assert others[0] == f"  0.weight: {names[0]} [2, 9, 9], {names[1]} [2, 2, 2]"


@pytest.mark.parametrize("backend", ["tn", None])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: str, backend: str | None) -> None:
    x = images(5, 2, 8, 7)
    options: dict[str, Any] = {"kind": kind, "check_deterministic": False}
    options |= {"fisher_type": "type-2"}
    model = cnn(x)
    expected = dense(operator(stock, model, x, **options))
    halves = model.to(torch.bfloat16), x.to(torch.bfloat16)
    if backend is None:
        op = operator(ours, *halves, **options)
    else:
        op = operator(stock, *halves, backend=backend, **options)
    found = op @ torch.eye(op.shape[1], dtype=torch.bfloat16)
    assert found.dtype == op.dtype == torch.bfloat16
    assert torch.linalg.norm(found - expected) < 0.05 * torch.linalg.norm(expected)


def test_bad_input() -> None:
    x = images(4, 2, 5, 4)
    model = grouped(x)
    for options in ({"groups": "all"}, {"backend": "hooks"}):
        with pytest.raises(ValueError, match="groups") as error:
            operator(ours, model, x, **options)
        assert_in_form(error.value, "KFACLinearOperator", "groups")
    with pytest.raises(NotImplementedError, match="2.weight") as refusal:
        operator(stock, model, x, backend="tn")
    assert_in_form(refusal.value, "KFACLinearOperator", "params")
    with pytest.raises(ImportError, match=r"inverse\(damping"):
        ours.KFACInverseLinearOperator  # noqa: B018
    with pytest.raises(AttributeError):
        ours.Missing  # noqa: B018
