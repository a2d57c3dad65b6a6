"""States that are saved and loaded, and those that do not fit."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.optim.support import (
    assert_same_state,
    network,
    train,
)
from tn_extensions.optim import KFACPreconditioner


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"approx": "reduce", "damping_method": "exact", "fisher": "mc"},
        {"eigenvalue_correction": True},
    ],
)
def test_resuming(options: Any) -> None:
    """Bit for bit, between two updates of the inverses, from a safe file."""
    options = {"inverse_update_steps": 3, "factor_update_steps": 2, **options}
    model = network()
    whole = train(model, KFACPreconditioner(model, **options), range(7))
    model = network()
    first = KFACPreconditioner(model, **options)
    train(model, first, range(4))
    file = io.BytesIO()
    torch.save([first.state_dict(), model.state_dict()], file)
    file.seek(0)
    state, weights = torch.load(file, weights_only=True)
    resumed = network()
    resumed.load_state_dict(weights)
    second = KFACPreconditioner(resumed, **options)
    second.load_state_dict(state)
    assert second.steps == 4
    assert_close(train(resumed, second, range(4, 7)), whole, rtol=0, atol=0)


def test_checkpoint_of_another_architecture() -> None:
    model = network()
    found = KFACPreconditioner(model)
    train(model, found, [0])
    state = found.state_dict()
    other = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(36, 3))
    refusing = KFACPreconditioner(other.double())
    train(other, refusing, [0])
    before = copy.deepcopy(refusing.state_dict())
    with pytest.raises(ValueError, match="0, 2, 5") as error:
        refusing.load_state_dict(state)
    assert_in_form(error.value, "KFACPreconditioner", "state_dict")
    assert_same_state(before, refusing.state_dict())
    with pytest.raises(ValueError, match="version 1"):
        refusing.load_state_dict({"version": 0})
