"""Tuning a model: all its layers' plans are measured, and it is left as it was."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.messages import assert_in_form
from tn_extensions import functional, planning, tune
from tn_extensions.compiler.planning import current_mode
from tn_extensions.layers.module import Use


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 4, 3, groups=2, padding=1),
        nn.ConvTranspose2d(4, 4, 3, groups=2, padding=1),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 5),
    ).double()


INPUTS = torch.rand(3, 3, 6, 6, dtype=torch.float64)
QUANTITIES = ("kfac_expand", "per_sample_grad", "ggn_diagonal", "input_vjp", "bias_vjp")


def test_a_row_for_each_layer_and_quantity(cache: Path) -> None:
    network = model()
    report = tune(network, INPUTS, QUANTITIES, num_vectors=2, progress=False)
    assert {row.quantity for row in report} == set(QUANTITIES)
    rows = [row for row in report if row.quantity == "kfac_expand"]
    assert [row.layers for row in rows] == [("0",), ("3", "4"), ("6",)]
    assert all(row.gain >= 1 for row in report)
    lines = str(report).splitlines()
    assert len(lines) == len(report) + 1
    for name in ("layer", "quantity", "estimated choice", "measured choice", "gain"):
        assert name in lines[0]
    assert "3 (and 1 more)" in str(report)


def test_what_was_measured_is_used(cache: Path) -> None:
    network = model()
    before = functional.plan("kfac_expand", INPUTS, conv(network))
    assert not before.measured
    (row, *_) = tune(network, INPUTS, ["kfac_expand"], progress=False)
    after = functional.plan("kfac_expand", INPUTS, conv(network))
    assert after.measured and after.candidate.label == row.plan.candidate.label
    assert current_mode() == "estimate"


def conv(network: nn.Sequential) -> object:
    return Use.of(network[0], INPUTS, network[0](INPUTS), "separate").conv


def test_the_model_is_left_as_it_was(cache: Path) -> None:
    network = model()
    state, random = deepcopy(network.state_dict()), torch.get_rng_state()
    tune(network, INPUTS, ["kfac_reduce"], progress=False)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, times: int = 1) -> Tensor:
        if times > 1:
            raise KeyError("the model's own error")
        y: Tensor = self.layer(input=x)
        return y


def test_a_forward_that_fails(cache: Path) -> None:
    network = Failing()
    with pytest.raises(KeyError, match="own error"):
        tune(network, (torch.rand(2, 2), 2), progress=False)
    assert not network.layer._forward_hooks
    assert current_mode() == "estimate"


def test_kinds_of_inputs(cache: Path) -> None:
    x = torch.rand(2, 2)
    for inputs in (x, (x,), [x, 1], {"x": x, "times": 1}):
        assert len(tune(Failing(), inputs, ["kfac_expand"], progress=False)) == 1


def test_progress_is_shown(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune(Failing(), torch.rand(2, 2), ["kfac_expand"])
    assert "tune" in capsys.readouterr().err


def test_bad_arguments(cache: Path) -> None:
    with pytest.raises(TypeError) as caught:
        tune("model", INPUTS)  # type: ignore[arg-type]
    assert_in_form(caught.value, "tune", "model")
    with pytest.raises(ValueError) as refused:
        tune(model(), INPUTS, ["hessian"])
    assert_in_form(refused.value, "tune", "quantities")
    with pytest.raises(ValueError) as empty:
        tune(nn.ReLU(), INPUTS)
    assert_in_form(empty.value, "tune", "model")
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError) as deterministic:
            tune(model(), INPUTS)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_in_form(deterministic.value, "tune", "torch.use_deterministic_algorithms")


def test_works_under_another_mode(cache: Path) -> None:
    with planning("estimate"):
        assert tune(Failing(), torch.rand(2, 2), ["kfac_expand"], progress=False)
