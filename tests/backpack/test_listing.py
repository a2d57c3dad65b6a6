"""The plans that a backward pass uses can be listed."""

from __future__ import annotations

import torch
from backpack import backpack, extend
from torch import nn

from tn_extensions import plans
from tn_extensions.backpack import KFAC, BatchGrad
from tn_extensions.recognise import recognise


def test_plans_of_extensions() -> None:
    model = extend(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()))
    loss_function = extend(nn.MSELoss())
    loss = loss_function(model(torch.rand(2, 2, 5, 5)), torch.rand(2, 27))
    with plans() as used, backpack(KFAC(), BatchGrad()):
        loss.backward()
    names = [recognise(plan.network) for plan in used]
    assert {"kfac_expand", "per_sample_grad"} <= {*names}
    assert {runs for plan, runs in used.items() if plan.network.patterns} == {1}
