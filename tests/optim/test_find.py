"""Which layers of a model are preconditioned, and which models are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.optim.support import (
    batch,
    gradients,
    loss_of,
    network,
    preconditioned,
)
from tn_extensions import curvlinops
from tn_extensions.layers.module import SUPPORTED
from tn_extensions.optim import KFAC, KFACPreconditioner


def test_overrides_and_skipped_layers() -> None:
    own = {"5": {"damping": 5.0, "approx": "reduce", "damping_method": "fixed"}}
    options: dict[str, Any] = {"damping": 1e-2, "skip_layers": ("0", "ConvTranspose2d")}
    before, after = preconditioned(network(), batch(), overrides=own, **options)
    _, alone = preconditioned(network(), batch(), skip_layers=("0", "2"), **own["5"])
    assert_close(before[:4], after[:4], rtol=0, atol=0)
    assert_close(after[4:], alone[4:])
    assert not torch.allclose(before[4], after[4])


def test_unsupported_layers_keep_their_gradient() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.PReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).double()
    with pytest.warns(UserWarning, match="BatchNorm2d, PReLU keep their plain") as seen:
        found = KFACPreconditioner(model)
    assert len(seen) == 1
    loss_of(model, batch()).backward()
    before = gradients(model)
    found.step()
    after = gradients(model)
    names = [name for name, _ in model.named_parameters()]
    for name, b, a in zip(names, before, after, strict=True):
        assert torch.equal(b, a) == name.startswith(("1.", "2."))


def test_frozen_layers_and_parameters() -> None:
    model = network()
    model[0].requires_grad_(False)
    model[2].weight.requires_grad_(False)
    model[5].bias.requires_grad_(False)
    found = KFACPreconditioner(model, damping=0.1, damping_method="exact", kl_clip=None)
    assert list(found._layers) == ["2", "5"]
    loss_of(model, batch()).backward()
    params = [model[2].bias, model[5].weight]
    before = [p.grad.clone() for p in params]
    found.step()
    operator = curvlinops.KFACLinearOperator(
        model, nn.CrossEntropyLoss(), params, [batch()], fisher_type="empirical"
    )
    expected = operator.inverse(0.1, use_exact_damping=True) @ before
    assert_close([p.grad for p in params], expected)


def test_bad_models() -> None:
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    lazy = nn.Sequential(nn.LazyLinear(3))
    for model, kind in (
        (tied, NotImplementedError),
        (lazy, ValueError),
        (nn.BatchNorm1d(3), ValueError),
        (3, TypeError),
    ):
        with pytest.raises(kind, match="KFACPreconditioner: "):
            KFACPreconditioner(model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=", ".join(k.__name__ for k in SUPPORTED)):
        KFACPreconditioner(nn.BatchNorm1d(3))


def test_layers_of_complex_numbers_keep_their_gradient() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.warns(UserWarning, match="layer '1' has complex parameters"):
        found = KFACPreconditioner(model)
    assert list(found._layers) == ["0"]


def test_parameters_that_are_no_plain_tensors() -> None:
    class Own(torch.Tensor):
        pass

    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.rand(2, 2).as_subclass(Own))
    model = nn.Sequential(layer, nn.Linear(2, 2))
    with pytest.raises(NotImplementedError) as caught:
        KFACPreconditioner(model)
    assert_in_form(caught.value, "KFACPreconditioner", "0.weight")
    assert list(KFACPreconditioner(model, skip_layers=["0"])._layers) == ["1"]


def test_models_not_parameters() -> None:
    model = network()
    for kind in (KFAC, KFACPreconditioner):
        for wrong in (model.parameters(), list(model.parameters())):
            with pytest.raises(
                TypeError, match=f"{kind.__name__}: model must be a mod"
            ):
                kind(wrong)


def test_patterns_of_no_layer() -> None:
    with pytest.raises(ValueError, match="skip_layers must match names .* 'nope'"):
        KFACPreconditioner(network(), skip_layers=["0", "nope"])
    # those of layers that are not preconditioned anyway are fine
    KFACPreconditioner(network(), skip_layers=["ReLU", "0"])
