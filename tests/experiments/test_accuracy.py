"""Errors are small for right factors and large for wrong ones."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.accuracy import FRAME, framed, reference, relative_error
from experiments.contenders import (
    CONTENDERS,
    QUANTITIES,
    ConvModule,
    Quantity,
    Unsupported,
    make_input,
    prepare_for_memory,
    unfold_input,
)
from tests.reference.jacobian import kfac_factor, patches

MODULES: dict[str, partial[Any]] = {
    "dense": partial(nn.Conv2d, 4, 6, 3, padding=1),
    "strided": partial(nn.Conv2d, 4, 6, (3, 2), stride=2, padding=(1, 0)),
    "dilated": partial(nn.Conv2d, 4, 6, 3, dilation=2),
    "grouped": partial(nn.Conv2d, 4, 6, 3, groups=2),
    "depthwise": partial(nn.Conv2d, 9, 9, 3, padding=1, groups=9),
    "transposed": partial(nn.ConvTranspose2d, 4, 6, 4, stride=2, padding=1, groups=2),
    "1d": partial(nn.Conv1d, 4, 6, 3, padding=1),
}
EVERY_MODULE = pytest.mark.parametrize("make_module", MODULES.values(), ids=MODULES)
EVERY_QUANTITY = pytest.mark.parametrize("quantity", QUANTITIES)


def _input(module: ConvModule, dtype: torch.dtype = torch.float32) -> Tensor:
    size = (9,) * len(module.kernel_size)
    return make_input((3, module.in_channels, *size), "cpu").to(dtype)


@EVERY_MODULE
@EVERY_QUANTITY
def test_reference_is_the_jacobians(
    quantity: Quantity, make_module: partial[ConvModule]
) -> None:
    module = make_module()
    x = _input(module, torch.float64)
    if quantity == "mean":
        expected = patches(module, x).mean(-1)
    else:
        expected = kfac_factor(module, x, quantity)
    torch.testing.assert_close(reference(quantity, module, x).value, expected)


@EVERY_MODULE
@EVERY_QUANTITY
def test_contenders_are_right_or_say_why_not(
    quantity: Quantity, make_module: partial[ConvModule]
) -> None:
    module = make_module()
    for x in (_input(module), framed(_input(module))):
        exact = reference(quantity, module, x)
        for name, prepare in CONTENDERS[quantity].items():
            try:
                result = prepare(module, x)()
            except Unsupported as reason:
                assert name in ("curvlinops", "einconv", "einconv prepared")
                assert str(reason)
                continue
            assert relative_error(result, exact) < 2e-6, name


def test_unfold_refuses_what_stock_gets_wrong() -> None:
    x = torch.zeros(1, 2, 5, 5)
    for module in (
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.ConvTranspose2d(2, 2, 3, stride=2, output_padding=1),
    ):
        with pytest.raises(Unsupported):
            unfold_input(module, x)


def test_frame_is_one_pixel_wide() -> None:
    x = torch.ones(2, 3, 5, 6)
    y = framed(x)
    assert (y[:, :, 1:-1, 1:-1] == 1).all()
    assert (y == FRAME).sum() == 2 * 3 * (5 * 6 - 3 * 4)
    assert (x == 1).all()


def test_whole_minus_border_is_caught() -> None:
    module = nn.Conv2d(1, 1, 3)
    x = framed(_input(module))
    exact = reference("expand", module, x)
    careful = CONTENDERS["expand"]["unfold"](module, x)()
    assert relative_error(careful, exact) < 1e-6

    # the patches' centres see the interior only, yet here the frame comes and goes
    careless = careful.clone()
    inside = x[:, :, 1:-1, 1:-1]
    border = x.pow(2).sum() - inside.pow(2).sum()
    careless[4, 4] = (x.pow(2).sum() - border) / len(x)
    assert relative_error(careless, exact) > 1e-3


def test_impossible_entries_are_infinitely_wrong() -> None:
    # the padding is so wide that the first column of the kernel meets zeros only
    module = nn.Conv2d(1, 1, (1, 3), padding=(0, 5), dilation=5)
    x = torch.ones(1, 1, 4, 1)
    exact = reference("expand", module, x)
    right = exact.value.float()
    assert (right == 0).any()
    assert relative_error(right, exact) == 0
    wrong = right.clone()
    wrong[0, 0, 0] = 1e-30
    assert relative_error(wrong, exact) == math.inf
    assert relative_error(right * math.nan, exact) == math.inf


def test_memory_warm_up_is_small() -> None:
    warm_up, run = prepare_for_memory(
        "mean", "unfold", MODULES["dense"], (5, 4, 6, 6), "cpu"
    )
    assert warm_up().shape == (2, 36)
    assert run().shape == (5, 36)
