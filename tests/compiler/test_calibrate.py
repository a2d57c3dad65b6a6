"""Calibration measures every rate and plans with them."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch.testing import assert_close

from tests.messages import assert_in_form
from tests.strategies import noise_tensor
from tn_extensions import Conv, calibrate, functional
from tn_extensions.compiler.cost import RATES, rates


def test_measures_all_rates_and_plans_anew() -> None:
    conv = Conv.make(8, 8, 3, (12, 12), padding=1)
    x = noise_tensor((4, 8, 12, 12))
    before, plan = rates("cpu"), functional.plan("kfac_expand", x, conv)
    expected = functional.kfac_expand(x, conv)

    measured = calibrate()
    assert (
        rates("cpu") is measured is functional.plan("kfac_expand", x, conv).target.rates
    )
    assert plan.target.rates is before
    fixed = {"cache", "half_size", "batched_half_size"}
    for field in fields(measured):
        old, new = getattr(before, field.name), getattr(measured, field.name)
        assert (new == old) if field.name in fixed else (new > 0 and new != old)
    # a product is faster than a copy is, and so on: the order of magnitude is right
    assert 1e9 < measured.gemm < 1e14 and 1e-8 < measured.call < 1e-3
    assert measured.narrow < 3 * measured.gemm
    assert_close(functional.kfac_expand(x, conv), expected)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta"])
def test_devices_that_are_not_there(device: str) -> None:
    before = dict(RATES)
    with pytest.raises(ValueError) as error:
        calibrate(device)
    assert_in_form(error.value, "calibrate", "device")
    assert before == RATES


def test_kind_of_device() -> None:
    with pytest.raises(TypeError) as error:
        calibrate(0)  # type: ignore[arg-type]
    assert_in_form(error.value, "calibrate", "device")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda() -> None:
    assert calibrate("cuda").gemm > 1e11
