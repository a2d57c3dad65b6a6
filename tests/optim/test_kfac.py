"""KFAC as an optimizer: schedulers, groups of parameters, states."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from tests.optim.support import (
    batch,
    loss_of,
    network,
)
from tn_extensions.optim import KFAC, KFACPreconditioner


def test_optimizer() -> None:
    options: dict[str, Any] = {"damping": 0.1, "kl_clip": 1e-3}
    model = network()
    found = KFACPreconditioner(model, lr=0.05, **options)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01
    )
    for number in range(4):
        optimizer.zero_grad()
        loss_of(model, batch(number=number)).backward()
        found.step()
        optimizer.step()
    own = network()
    kfac = KFAC(own, lr=0.05, momentum=0.9, weight_decay=0.01, **options)
    assert isinstance(kfac, torch.optim.Optimizer)

    def closure() -> Tensor:
        kfac.zero_grad()
        loss = loss_of(own, batch(number=number))
        loss.backward()
        return loss

    for number in range(2):  # noqa: B007 (the closure reads it)
        assert kfac.step(closure).item() > 0
    file = io.BytesIO()
    torch.save(kfac.state_dict(), file)
    file.seek(0)
    resumed = KFAC(own, lr=1.0, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    # the hooks of the former would see the same passes
    for number in range(2, 4):
        resumed.zero_grad()
        loss_of(own, batch(number=number)).backward()
        resumed.step()
    assert_close(list(own.parameters()), list(model.parameters()), rtol=0, atol=0)


def test_schedulers_and_param_groups() -> None:
    model = network()
    groups = [
        {"params": model[:3].parameters(), "lr": 0.01},
        {"params": model[3:].parameters()},
    ]
    kfac = KFAC(model, lr=0.1, params=groups)
    scheduler = torch.optim.lr_scheduler.StepLR(kfac, 1, gamma=0.5)
    loss_of(model, batch()).backward()
    kfac.step()
    scheduler.step()
    assert [group["lr"] for group in kfac.param_groups] == [0.005, 0.05]
