"""Gradients that are replaced, clipped, or not finite."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.optim.support import (
    assert_same_state,
    batch,
    gradients,
    loss_of,
    network,
    preconditioned,
    train,
)
from tn_extensions.optim import KFACPreconditioner


def test_kl_clip() -> None:
    before, free = preconditioned(network(), batch())
    _, clipped = preconditioned(network(), batch(), kl_clip=1e-4, lr=0.2)
    total = sum(float((b * f).sum()) for b, f in zip(before, free, strict=True))
    scale = min(1.0, (1e-4 / (0.2**2 * total)) ** 0.5)
    assert scale < 1
    assert_close(clipped, [scale * f for f in free])


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan(where: str) -> None:
    model = network()
    found = KFACPreconditioner(model)
    train(model, found, [0, 1])
    state = copy.deepcopy(found.state_dict())
    model.zero_grad()
    loss = loss_of(model, batch())
    (loss * torch.nan if where == "loss" else loss).backward()
    model[2].weight.grad[0] = torch.nan
    before = gradients(model)
    with pytest.raises(ValueError, match=r"2\.weight") as error:
        found.step()
    assert_in_form(error.value, "KFACPreconditioner", "gradients")
    assert_same_state(state, found.state_dict())
    assert_close(gradients(model), before, rtol=0, atol=0, equal_nan=True)
    # what was seen of the failed step is gone
    other = network()
    expected = train(other, KFACPreconditioner(other), [0, 1, 2])
    assert_close(train(model, found, [2]), expected, rtol=0, atol=0)


def test_update_that_overflows(caplog: pytest.LogCaptureFixture) -> None:
    model = network(torch.float32)
    found = KFACPreconditioner(model, damping=1e-2)
    train(model, found, [0], data=lambda _: batch(dtype=torch.float32))
    weights = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    loss_of(model, batch(dtype=torch.float32)).backward()
    for parameter in model.parameters():
        parameter.grad *= 1e25
    found.step()
    optimizer.step()
    assert found.skipped == 1
    assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert "not finite" in caplog.text
