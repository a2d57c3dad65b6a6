"""What becomes of the gradients of a layer's parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.optim.support import (
    assert_same_state,
    batch,
    gradients,
    loss_of,
    network,
)
from tests.optim.test_observer import FISHERS, expected_factors, factors, factors_of
from tn_extensions.optim import KFACPreconditioner


def attack_by_grad(model: nn.Module, number: int) -> None:
    x, y = batch(number=number)
    torch.autograd.grad(loss_of(model, (x.requires_grad_(), y)), x)


def attack_by_inputs(model: nn.Module, number: int) -> None:
    x, y = batch(number=number)
    loss_of(model, (x.requires_grad_(), y)).backward(inputs=[x])


def attack_and_zero(model: nn.Module, number: int) -> None:
    loss_of(model, batch(number=number)).backward()
    model.zero_grad()


def attack_and_zero_in_place(model: nn.Module, number: int) -> None:
    loss_of(model, batch(number=number)).backward()
    model.zero_grad(set_to_none=False)


def attack_as_frozen(model: nn.Module, number: int) -> None:
    model.requires_grad_(False)
    attack_by_grad(model, number)
    model.requires_grad_(True)


def never_differentiated(model: nn.Module, number: int) -> None:
    model(batch(number=number)[0])


ATTACKS = [
    attack_by_grad,
    attack_by_inputs,
    attack_and_zero,
    attack_and_zero_in_place,
    attack_as_frozen,
    never_differentiated,
]


@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("attack", ATTACKS)
def test_discarded_passes(attack: Any, times: int, fisher: Any) -> None:
    model = network()
    found = KFACPreconditioner(model, fisher=fisher)
    for number in range(times):
        attack(model, number + 1)
    loss_of(model, batch()).backward()
    found.step()
    assert_close(factors(found), expected_factors(fisher=fisher))


def test_changed_gradients_are_not_discarded() -> None:
    """Clipping between accumulated passes is no reason to drop statistics."""
    model = network()
    found = KFACPreconditioner(model)
    for number in range(2):
        (loss_of(model, batch(number=number)) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        if number == 0:
            for parameter in model.parameters():
                parameter.grad = parameter.grad / 2
    found.step()
    assert all(layer.averages for layer in found._layers.values())
    other = network()
    both = [torch.cat(parts) for parts in zip(batch(), batch(number=1), strict=True)]
    wanted = factors_of(other, lambda: loss_of(other, (both[0], both[1])))
    assert_close(factors(found), wanted)


def test_parameters_that_are_replaced() -> None:
    model = network()
    found = KFACPreconditioner(model)
    for layer in (model[0], model[5]):
        layer.weight = nn.Parameter(layer.weight.detach().clone())
    loss_of(model, batch()).backward()
    found.step()
    assert_close(factors(found), expected_factors())


def test_second_step() -> None:
    model = network()
    found = KFACPreconditioner(model)
    loss_of(model, batch()).backward()
    found.step()
    state, before = copy.deepcopy(found.state_dict()), gradients(model)
    with pytest.raises(RuntimeError, match="since the last step"):
        found.step()
    assert_close(gradients(model), before, rtol=0, atol=0)
    assert_same_state(found.state_dict(), state)
    # whether gradients accumulate or are assigned, they are new
    loss_of(model, batch()).backward()
    found.step()
    for parameter in model.parameters():
        parameter.grad = parameter.grad.clone()
    found.step()
    assert found.steps == 3
