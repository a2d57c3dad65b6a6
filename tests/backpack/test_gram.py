"""Gram matrices of groups of parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from backpack import backpack, extend
from torch import nn

from tests.backpack.run import classifier, images, targets
from tests.backpack.suite import (
    assert_as_jacobians,
    expected,
    names_with,
)
from tests.backpack.test_backward import small
from tests.backpack.test_extension import backward
from tests.messages import assert_in_form
from tn_extensions import backpack as ours


@pytest.mark.parametrize("name", ["BatchDotGrad", "GGNGramExact", "GGNGramMC"])
@pytest.mark.parametrize("as_dict", [True, False])
def test_sums_over_groups(name: str, as_dict: bool) -> None:
    model, x = small()
    wanted = expected(name, model, x)
    criterion, model = extend(nn.CrossEntropyLoss()), extend(model)
    parameters = dict(model.named_parameters())
    weights = [p for key, p in parameters.items() if key.endswith("weight")]
    groups: list[Any] = [weights, [parameters["0.bias"]]]
    if as_dict:
        groups = [{"params": group, "lr": 0.1} for group in groups]
    options = {"mc_samples": 2} if name.endswith("MC") else {}
    extension = getattr(ours, name)(param_groups=groups, **options)
    for _ in range(2):  # a second pass begins anew
        loss = criterion(model(x), targets(len(x)))
        torch.manual_seed(1)
        with backpack(extension):
            loss.backward()
        total = sum(value for key, value in wanted.items() if key.endswith("weight"))
        for key, parameter in parameters.items():
            found = getattr(parameter, extension.savefield)
            exact = total if key.endswith("weight") else wanted[key]
            torch.testing.assert_close(found, exact)
    shared = {getattr(p, extension.savefield).data_ptr() for p in weights}
    assert len(shared) == 1


def test_groups_that_do_not_fit() -> None:
    weight = nn.Conv2d(1, 1, 1).weight
    with pytest.raises(ValueError) as twice:
        ours.BatchDotGrad(param_groups=[[weight], [weight]])
    assert_in_form(twice.value, "BatchDotGrad", "param_groups[1]")
    with pytest.raises(TypeError) as wrong:
        ours.GGNGramExact(param_groups=[{"params": ["weight"]}])
    assert_in_form(wrong.value, "GGNGramExact", "param_groups[0]")


GRAMS = ["BatchDotGrad", "GGNGramExact", "GGNGramMC"]


@pytest.mark.parametrize("name", GRAMS)
@pytest.mark.parametrize("kept", [[], ["model"]], ids=len)
def test_groups_of_another_model(name: str, kept: list[str]) -> None:
    x = images(3, 1, 4)
    model = classifier(nn.Conv1d(1, 2, 2), x=x)
    other = copy.deepcopy(model)
    groups = [list(model.parameters()) for _ in kept] + [list(other.parameters())]
    extension = getattr(ours, name)(param_groups=groups)
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            backward(model, extension, x=x)
        assert_in_form(caught.value, name, f"param_groups[{len(kept)}]")
        assert names_with(model, extension.savefield) == {}
    backward(other, getattr(ours, name)(param_groups=groups[len(kept) :]), x=x)


@pytest.mark.parametrize("name", GRAMS)
def test_groups_that_are_frozen_or_unused_in_part(name: str) -> None:
    x = images(3, 1, 4)
    model, spare = classifier(nn.Conv1d(1, 2, 2), x=x), nn.Linear(2, 2)
    model[0].requires_grad_(False)
    groups = [model[0].parameters(), [*model[2].parameters(), *spare.parameters()]]
    extension = getattr(ours, name)(param_groups=groups)
    found = names_with(backward(model, extension, x=x), extension.savefield)
    assert set(found) == {"2.weight", "2.bias"}


@pytest.mark.parametrize("name", GRAMS)
def test_groups_that_are_none(name: str) -> None:
    layer = nn.Conv1d(1, 2, 2)
    for groups in (layer.parameters(), [layer], [{"parameters": [layer.weight]}], [3]):
        with pytest.raises(TypeError) as caught:
            getattr(ours, name)(param_groups=groups)
        assert_in_form(caught.value, name, "param_groups[0]")
    with pytest.raises(TypeError) as caught:
        getattr(ours, name)(param_groups=3)
    assert_in_form(caught.value, name, "param_groups")


@pytest.mark.usefixtures("double")
def test_other_layers_of_dot_products() -> None:
    tokens = torch.tensor([[1, 0, 1], [2, 2, 0]])
    model = nn.Sequential(nn.Embedding(3, 4), nn.Flatten(), nn.Linear(12, 3)).double()
    for name in ("BatchDotGrad", "GGNGramExact"):
        assert_as_jacobians(name, model, tokens)
