"""What a step tells about itself."""

from __future__ import annotations

from torch.testing import assert_close

from tests.optim.support import batch, loss_of, network
from tn_extensions.optim import (
    KFACPreconditioner,
)


def test_metrics_of_a_step() -> None:
    model = network()
    found = KFACPreconditioner(
        model, damping=0.1, kl_clip=1e-4, lr=0.2, inverse_update_steps=2
    )
    free = KFACPreconditioner(other := network(), damping=0.1, kl_clip=None)
    assert found.last_step is None
    for number in range(2):
        for each in (model, other):
            each.zero_grad()
            loss_of(each, batch()).backward()
        found.step()
        free.step()
        metrics = found.last_step
        assert metrics is not None and free.last_step is not None
        assert (metrics.step, metrics.is_skipped) == (number, False)
        assert metrics.factors_updated
        assert metrics.inverses_updated == (() if number else ("0", "2", "5"))
        assert metrics.damping == dict.fromkeys(("0", "2", "5"), 0.1)
        assert metrics.clip_scale is not None
        assert 0 < metrics.clip_scale < 1
        assert free.last_step.clip_scale == 1
        if number == 0:
            weight, whole = (each[0].weight.grad for each in (model, other))
            assert weight is not None and whole is not None
            assert_close(weight, metrics.clip_scale * whole)
    # nothing finite comes out: the step is skipped
    model.zero_grad()
    loss_of(model, batch()).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad *= 1e200
    found.step()
    assert found.last_step is not None and found.last_step.is_skipped
    assert found.last_step.clip_scale is None
