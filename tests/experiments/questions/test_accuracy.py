"""Errors of factors are small for correct ones and large for wrong ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from experiments.contenders.quantities import (
    CONTENDERS,
    SMALL,
    Asked,
    Tensors,
    reference,
)
from experiments.questions.accuracy import (
    FRAME,
    QUANTITIES,
    QUESTION,
    framed,
    relative_error,
    scales,
)
from experiments.subjects.layers import Layer
from tests.experiments.questions.support import rows_of
from tests.reference.jacobian import kfac_factor
from tn_extensions import Conv

CPU = torch.device("cpu")
GROUPED = Layer("none", Conv.make(4, 6, (3, 2), (9, 9), 2, (1, 0), groups=2))


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_reference_is_the_jacobians(quantity: str) -> None:
    asked = Asked(quantity, GROUPED, 3)
    x = asked.tensors(CPU)["x"].double()
    module = GROUPED.module("cpu").double()
    expected = kfac_factor(module, x, quantity.removeprefix("kfac_"))
    assert_close(reference(asked, {"x": x}), expected)


def test_frame_is_one_pixel_wide() -> None:
    x = torch.ones(2, 3, 5, 6)
    y = framed(x)
    assert (y[:, :, 1:-1, 1:-1] == 1).all()
    assert (y == FRAME).sum() == 2 * 3 * (5 * 6 - 3 * 4)
    assert (x == 1).all()


def test_whole_minus_border_is_caught() -> None:
    asked = Asked("kfac_expand", Layer("none", Conv.make(1, 1, 3, (9, 9))), 3)
    x = framed(asked.tensors(CPU)["x"])
    exact, scale = reference(asked, {"x": x}), scales(asked, x)
    careful = CONTENDERS["kfac_expand"]["stock"](asked, {"x": x})()
    assert relative_error(careful, exact, scale) < 1e-6
    # the patches' centres see the interior only, yet here the frame comes and goes
    careless = careful.clone()
    border = x.square().sum() - x[:, :, 1:-1, 1:-1].square().sum()
    careless[0, 4, 4] = (x.square().sum() - border) / len(x)
    assert relative_error(careless, exact, scale) > 1e-3


def test_impossible_entries_are_infinitely_wrong() -> None:
    # the padding is so wide that the first column of the kernel meets zeros only
    conv = Conv.make(1, 1, (1, 3), (4, 1), 1, (0, 5), dilation=5)
    asked = Asked("kfac_expand", Layer("none", conv), 1)
    x = torch.ones(1, 1, 4, 1)
    exact, scale = reference(asked, {"x": x}), scales(asked, x)
    assert (exact == 0).any() and relative_error(exact, exact, scale) == 0
    wrong = exact.clone()
    wrong[0, 0, 0] = 1e-30
    assert relative_error(wrong, exact, scale) == math.inf
    assert relative_error(exact * math.nan, exact, scale) == math.inf


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(asked: Asked, tensors: Tensors) -> object:
        return lambda: torch.ones(1, 18, 18)

    for quantity in QUANTITIES:
        monkeypatch.setitem(CONTENDERS[quantity], "curvlinops", wrong)
    rows = rows_of(QUESTION, tmp_path)
    assert {*rows["quantity"]} == {*QUANTITIES}
    worst = rows.groupby("contender")["error"].max()
    assert worst["ours"] < 1e-5 and worst["any of our candidates"] < 1e-5
    assert worst["curvlinops"] > 0.1
    assert SMALL.name in {*rows["layer"]}
