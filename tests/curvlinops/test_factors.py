"""Factors of layers: every convolution, uses that share weights, few data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import curvlinops as stock
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from tests.backpack.run import classifier, images, targets
from tests.curvlinops.test_kfac import APPROX, DAMPINGS, dense, operator
from tests.reference import curvature
from tests.strategies import (
    BATCHES,
    examples,
    module_input,
    modules,
    noise_tensor,
)
from tn_extensions import curvlinops as ours
from tn_extensions.curvlinops.stored import kept


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("num_data", [5, 30])
def test_few_data_keep_low_rank_factors(
    num_data: int, separate: bool, approx: str
) -> None:
    """Factors of fewer vectors than half their size are kept as these."""
    x = images(num_data, 8, 3, 3)
    y = targets(num_data)
    model = classifier(nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.Tanh(), x=x)
    data = [(x[:2], y[:2]), (x[2:], y[2:])]
    options: dict[str, Any] = {"fisher_type": "empirical", "kfac_approx": approx}
    options["separate_weight_and_bias"] = separate
    mine, theirs = (operator(m, model, data, **options) for m in (ours, stock))
    assert_close(dense(mine), dense(theirs), rtol=1e-10, atol=1e-12)
    is_few = num_data == 5 or approx == "reduce"
    assert (kept(mine._input_covariances)["0"].shape[1] <= 36) == is_few
    for name in ("trace", "frobenius_norm"):
        assert_close(getattr(mine, name), getattr(theirs, name))
    assert mine.det == 0
    for damping in DAMPINGS:
        inverse = stock.KFACInverseLinearOperator(theirs, **damping)
        assert_close(dense(mine.inverse(**damping)), dense(inverse))
    for exact in (False, True):
        with pytest.raises(torch.linalg.LinAlgError, match="Increase the damping"):
            dense(mine.inverse(use_exact_damping=exact))


@examples(60)
@given(case=st.data())
def test_factors_of_every_convolution(case: st.DataObject) -> None:
    module, sizes = case.draw(modules())
    x = module_input(module, sizes, case.draw(BATCHES))
    approx = case.draw(st.sampled_from(APPROX))
    model = nn.Sequential(module, nn.Flatten()).double()
    with torch.no_grad():
        y = noise_tensor(model(x).shape)
    op = operator(
        ours,
        model,
        [(x, y)],
        loss=nn.MSELoss(),
        fisher_type="empirical",
        kfac_approx=approx,
        check_deterministic=False,
    )
    op.compute_kronecker_factors()
    expected = curvature.input_factor(module, x, approx)
    found = op._input_covariances["0"]
    assert_close(found if found.dim() == 3 else found[None], expected)
    # the gradients of the outputs, by hand
    output = module(x).detach()
    flat = output.flatten(1)
    g = (2 / flat.shape[1]) * (flat - y) / len(x) * math.sqrt(flat.shape[1])
    g = g.reshape(*output.shape[:1], module.groups, -1, *output.shape[2:]).flatten(3)
    if approx == "reduce":
        g = g.sum(3, keepdim=True)
    expected = torch.einsum("ngao,ngbo->gab", g, g) * len(x)
    found = op._gradient_covariances["0"]
    assert_close(found if found.dim() == 3 else found[None], expected)


@pytest.mark.parametrize("approx", APPROX)
def test_uses_share_the_weight_as_positions_do(approx: str) -> None:
    """A layer used twice is the layer once on both inputs, one after another."""

    class Twice(nn.Module):
        def __init__(self, split: bool) -> None:
            super().__init__()
            self.layer = nn.Conv1d(2, 3, 3, stride=3).double()
            self.split = split

        def forward(self, x: Tensor) -> Tensor:
            if not self.split:
                return self.layer(x).sum(2)
            left, right = x[..., :6], x[..., 6:]
            return self.layer(left).sum(2) + self.layer(right).sum(2)

    x = images(4, 2, 9)
    once, twice = Twice(False), Twice(True)
    twice.load_state_dict(once.state_dict())
    found, expected = (
        dense(
            operator(ours, m, [(x, targets(4))], fisher_type="mc", kfac_approx=approx)
        )
        for m in (twice, once)
    )
    assert_close(found, expected)


class Tied(nn.Module):
    """Layers of the same parameters, or one of them twice."""

    def __init__(self, make: Callable[[], Any], is_one: bool) -> None:
        super().__init__()
        self.first, self.second = make().double(), make().double()
        self.second.weight, self.second.bias = self.first.weight, self.first.bias
        if is_one:
            self.second = self.first
        self.last = nn.Linear(6, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh().flatten(1), self.second(x.flip(0)).flatten(1)
        return torch.as_tensor(self.last(hidden[0] * hidden[1]))


TIED = {
    "linear": (lambda: nn.Linear(4, 6), (4,)),
    "grouped": (lambda: nn.Conv2d(4, 6, 2, groups=2), (4, 2, 2)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 3, 2, groups=1), (4, 1)),
}


@pytest.mark.parametrize("kind", ["KFAC", "EKFAC", "KFOC", "GGNDiagonal"])
@pytest.mark.parametrize(("make", "shape"), TIED.values(), ids=TIED)
def test_tied_layers_are_one_layer_used_twice(make: Any, shape: Any, kind: str) -> None:
    x, y = images(3, *shape), targets(3)
    options: dict[str, Any] = {"kind": f"{kind}LinearOperator"}
    if kind != "GGNDiagonal":
        options |= {"fisher_type": "type-2", "separate_weight_and_bias": False}
    once, twice = (Tied(make, is_one) for is_one in (True, False))
    once.load_state_dict(twice.state_dict(), strict=False)
    found, expected = (
        dense(operator(ours, model, [(x, y)], **options)) for model in (twice, once)
    )
    assert_close(found, expected)


@pytest.mark.parametrize("kind", ["KFACLinearOperator", "EKFACLinearOperator"])
@pytest.mark.parametrize("separate", [False, True])
def test_tied_layers_are_exact(separate: bool, kind: str) -> None:
    """For a datum, and paths that do not meet."""

    class Paths(Tied):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.first(x[:, :4]), self.second(x[:, 4:])], 1)

    model = Paths(lambda: nn.Linear(4, 6), False)
    del model.last
    data = [(images(1, 8), images(1, 12))]
    options: dict[str, Any] = {"loss": nn.MSELoss()}
    exact = dense(operator(stock, model, data, kind="GGNLinearOperator", **options))
    options |= {"fisher_type": "type-2", "separate_weight_and_bias": separate}
    found = dense(operator(ours, model, data, kind=kind, **options))
    number = torch.tensor([0] * 24 + [int(separate)] * 6)
    assert_close(found, exact * (number == number[:, None]))
