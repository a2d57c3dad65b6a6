"""Modules, losses and options that extensions of second order refuse."""

from __future__ import annotations

from typing import Any

import pytest
from backpack import backpack, extend
from torch import nn

from tests.backpack.run import classifier, images, targets
from tests.backpack.suite import (
    EXACT,
    HESSIAN,
    SAMPLED,
    SUITE,
)
from tests.backpack.test_backward import fields_of, small
from tests.backpack.test_extension import SECOND_ORDER, assert_refused
from tests.backpack.test_kronecker_modules import Standardized
from tests.messages import assert_in_form
from tn_extensions import backpack as ours
from tn_extensions.backpack.sharing import SHARED

CURVATURES = [*EXACT, *SAMPLED, *HESSIAN]


@pytest.mark.parametrize("name", CURVATURES)
def test_unknown_module(name: str) -> None:
    """Nothing is left of the pass, not even of the extensions beside."""
    x = images(2, 2, 4, 4)
    model = classifier(nn.Conv2d(2, 2, 2), Standardized(2, 2, 2), x=x)
    criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
    extensions = [ours.BatchGrad(), SUITE[name](ours)]
    with backpack(*extensions), pytest.raises(NotImplementedError, match="Standardi"):
        criterion(model(x), targets(len(x))).backward()
    for extension in extensions:
        assert fields_of(model, extension) == []
    assert not SHARED.active and not SHARED._values


@pytest.mark.parametrize("name", CURVATURES)
def test_loss_without_reduction(name: str) -> None:
    model, x = small()
    criterion, model = extend(nn.CrossEntropyLoss(reduction="none")), extend(model)
    with backpack(SUITE[name](ours)), pytest.raises(ValueError) as caught:
        criterion(model(x), targets(len(x))).sum().backward()
    assert_in_form(caught.value, name, "CrossEntropyLoss.reduction")


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_activation_used_twice_by_second_order(name: str) -> None:
    """BackPACK needs the input of each use."""
    x, act = images(3, 1, 5), nn.Sigmoid()
    model = classifier(nn.Conv1d(1, 2, 2), act, nn.Conv1d(2, 2, 2), act, x=x)
    message = assert_refused(ValueError, name, model, x)
    assert "Sigmoid must be used once" in message


@pytest.mark.parametrize("name", ["KFAC", "DiagGGNMC", "SqrtGGNMC", "GGNGramMC"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True, None])
def test_numbers_of_samples(name: str, value: Any) -> None:
    kind = ValueError if type(value) is int else TypeError
    with pytest.raises(kind) as caught:
        getattr(ours, name)(mc_samples=value)
    assert_in_form(caught.value, name, "mc_samples")
